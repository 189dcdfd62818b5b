"""Trainings on the base that serves: one at a time, in a thread that gets what serving leaves of the cores."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from google.protobuf.descriptor import ServiceDescriptor

from adapterd.v1 import training_pb2 as v1
from adapters_cache.formats.adapterhub import check_file_name
from server.config import ServerConfig
from server.core import Tenant
from server.errors import Forbidden, InvalidInput, Overloaded, TooLarge, UnsupportedConfig
from server.memory import compute_with
from server.model.base import Base
from training.files import READERS

if TYPE_CHECKING:
    from training.run import Plan

NEEDED = ("accelerate", "sklearn")
MAX_WAITING = 8
MAX_ROWS_BYTES = 1 << 30
PIECE_BYTES = 1 << 20
log = logging.getLogger("adapterd")
SPLITS = ("train", "validation", "test")
LEAST_URGENT = 19  # as nice has it; threads that a thread starts inherit it


def services(config: ServerConfig, base: Base) -> list[tuple[ServiceDescriptor, object]]:
    """What a server offers besides inference; nothing where training is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        log.info("no training here: %s is not installed (pip install 'adapterd[train]')", ", ".join(missing))
        return []
    servicer = TrainingServicer(base, is_quantized=config.model.quantization != "none")
    return [(v1.DESCRIPTOR.services_by_name["Training"], servicer)]


class Context(Protocol):
    async def write(self, message: v1.TrainResponse) -> None: ...


class Stopped(BaseException):
    """Ends a training whose caller has gone; no except Exception on the way catches it."""


class TrainingServicer:
    """The RPC of `adapterd.v1.Training`."""

    def __init__(self, base: Base, *, is_quantized: bool) -> None:
        self._base = base
        self._is_quantized = is_quantized
        spare = max(1, (os.cpu_count() or 1) - base.num_threads)
        self._pool = ThreadPoolExecutor(1, "training", _stand_back, (spare,))
        self._num_waiting = 0

    async def Train(self, messages: AsyncIterator[v1.TrainRequest], context: Context, tenant: Tenant) -> None:
        if not tenant.can_train:
            raise Forbidden(f"tenant {tenant.name!r} may not train adapters; its operator sets can_train")
        self._check_base()
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(
                f"{self._num_waiting} trainings wait already, the limit; train elsewhere or later", retry_after_s=60.0
            )
        self._num_waiting += 1
        try:
            with tempfile.TemporaryDirectory(prefix="adapterd-train-") as name:
                await self._answer(messages, context, Path(name))
        finally:
            self._num_waiting -= 1

    async def _answer(self, messages: AsyncIterator[v1.TrainRequest], context: Context, folder: Path) -> None:
        asked, paths = await _received(messages, folder)
        plan = await asyncio.to_thread(_plan, asked, paths, folder)
        await context.write(v1.TrainResponse(queued=v1.Queued(num_before=self._num_waiting - 1)))
        await self._train(plan, context)
        for message in _files(plan.output):
            await context.write(message)

    def _check_base(self) -> None:
        """Raises UnsupportedConfig with the reason."""
        if self._is_quantized:
            raise UnsupportedConfig("this server's base is quantized, which is not trained on; train elsewhere")
        if self._base.dtype is not torch.float32:
            dtype = str(self._base.dtype).removeprefix("torch.")
            raise UnsupportedConfig(f"this server's base is in {dtype}, trained is in float32; train elsewhere")
        if self._base.stitching.kernels.JOINS:
            raise UnsupportedConfig("this server's backend is not trained on; start it with --set model.backend=eager")

    async def _train(self, plan: Plan, context: Context) -> None:
        """In the training thread, after those before it. Steps are told as they come, as many as the caller takes."""
        loop, news, is_gone = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        latest: list[v1.Step] = []

        def tell(step: v1.Step) -> None:
            latest[:] = [step]
            news.set()

        def progress(step: int, num_steps: int, loss: float) -> None:
            if is_gone.is_set():
                raise Stopped
            loop.call_soon_threadsafe(tell, v1.Step(step=step, num_steps=num_steps, loss=loss))

        job = self._pool.submit(_work, plan, progress, self._base)
        done = asyncio.wrap_future(job)
        done.add_done_callback(lambda _: news.set())
        try:
            while not done.done():
                await news.wait()
                news.clear()
                if latest:
                    await context.write(v1.TrainResponse(step=latest.pop()))
        finally:
            is_gone.set()
            if not job.cancel():
                await asyncio.wait([done])  # its files are not taken from under it
        done.result()


def _stand_back(num_threads: int) -> None:
    """The calling thread, and those that it will start, get what the others leave of the cores."""
    compute_with(num_threads)
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)


async def _received(messages: AsyncIterator[v1.TrainRequest], folder: Path) -> tuple[v1.TrainPlan, dict[str, Path]]:
    """What is asked for, with its rows in files of `folder`. Raises InvalidInput, TooLarge."""
    first = await anext(messages, None)
    if first is None or first.WhichOneof("part") != "plan":
        raise InvalidInput("the first message has to be the plan")
    asked, num_bytes = first.plan, 0
    check_file_name(asked.name)
    paths: dict[str, Path] = {}
    async for message in messages:
        rows = message.rows
        if rows.split not in SPLITS or rows.suffix not in READERS:
            raise InvalidInput(
                f"rows of split {rows.split!r} and suffix {rows.suffix!r}: splits are {', '.join(SPLITS)},"
                f" suffixes {', '.join(READERS)}"
            )
        num_bytes += len(rows.content)
        if num_bytes > MAX_ROWS_BYTES:
            raise TooLarge(f"the rows have more than {MAX_ROWS_BYTES} bytes, the limit")
        paths.setdefault(rows.split, folder / f"{rows.split}{rows.suffix}")
        await asyncio.to_thread(_append, paths[rows.split], rows.content)
    if "train" not in paths:
        raise InvalidInput("no rows to train on were sent")
    return asked, paths


def _plan(asked: v1.TrainPlan, paths: Mapping[str, Path], folder: Path) -> Plan:
    """Imports what training needs: seconds that a server which trains nobody does not spend. Raises InvalidInput."""
    from training.fit import TrainConfig
    from training.run import Plan

    settings = TrainConfig(
        epochs=asked.epochs,
        learning_rate=asked.learning_rate,
        batch_size=asked.batch_size,
        patience=asked.patience,
        seed=asked.seed,
    )
    return Plan(
        base="",
        task=asked.task,
        train=paths["train"],
        validation=paths.get("validation"),
        test=paths.get("test"),
        output=folder / "adapters" / asked.name,
        config=asked.config,
        training=settings,
    )


def _work(plan: Plan, progress: Callable[[int, int, float], None], base: Base) -> None:
    from training.run import train

    train(plan, progress, base=base)


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def _files(folder: Path) -> Iterator[v1.TrainResponse]:
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield v1.TrainResponse(file=v1.TrainedFile(path=path.name, content=piece))
