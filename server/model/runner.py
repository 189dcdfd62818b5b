"""Stage 5: the one thread that touches the device: place adapters, pack, route, forward, heads, reply."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from server.core import Adapter, Batch, BatchInfo, BranchOutput, Sample, SampleOutput, Tier
from server.errors import AdapterdError, DeadlineExceeded, DeviceFault, Internal, NonFinite, OutOfDeviceMemory
from server.memory import compute_with
from server.metrics import Metrics
from server.model.base import Base
from server.model.heads import pool, run_head, to_host
from server.model.rows import Key, Pass, plan_pass
from server.model.slots import SlotBank

log = logging.getLogger(__name__)
Outcome = SampleOutput | AdapterdError
Answer = tuple[Tensor, ...]
Result = TypeVar("Result")


Finish = Callable[[], list[Outcome]]


@dataclass(slots=True)
class _Work:
    batch: Batch
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Outcome]]


_STOP = object()


class Runner:
    """Executes batches one after the other, in the order in which `run` was called.

    overlaps   the next batch is packed and launched while the device computes, which it does by itself; by default on
               GPUs. At most one is ahead
    """

    def __init__(self, base: Base, bank: SlotBank, metrics: Metrics, overlaps: bool | None = None) -> None:
        self._base = base
        self._bank = bank
        self._metrics = metrics
        self._overlaps = base.device.type == "cuda" if overlaps is None else overlaps
        self._queue: queue.SimpleQueue[_Work | object] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="runner", daemon=True)
        self._idle_since = 0.0  # when the last results came

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what was handed over, then end the thread."""
        self._queue.put(_STOP)
        self._thread.join()

    async def run(self, batch: Batch) -> list[Outcome]:
        """Outcome of every sample, in the order of `batch.samples`. Raises Internal if the whole batch failed."""
        loop = asyncio.get_running_loop()
        work = _Work(batch, loop, loop.create_future())
        self._queue.put(work)
        return await work.done

    def _loop(self) -> None:
        compute_with(self._base.num_threads)
        before: tuple[_Work, Finish] | None = None  # what the device computes
        while True:
            work = self._next(waits=before is None)
            launched = None
            if isinstance(work, _Work) and (finish := self._guarded(work, partial(self.launch, work.batch))):
                launched = (work, finish)
            if before is not None:
                self._answer(*before)
            if launched is not None and not self._overlaps:
                self._answer(*launched)
                launched = None
            before = launched
            if work is _STOP:
                return

    def _next(self, *, waits: bool) -> _Work | object | None:
        """What was handed over, _STOP, or None where there is nothing and we do not wait."""
        try:
            return self._queue.get(block=waits)
        except queue.Empty:
            return None

    def _answer(self, work: _Work, finish: Finish) -> None:
        if (outcomes := self._guarded(work, finish)) is not None:
            work.loop.call_soon_threadsafe(_resolve, work.done, outcomes)

    def _guarded(self, work: _Work, step: Callable[[], Result]) -> Result | None:
        """What a step of a batch gives; None where it failed, which the batch's callers hear: the thread lives on."""
        try:
            return step()
        except Exception as error:
            log.exception("batch %d failed", work.batch.id)
            known = error if isinstance(error, AdapterdError) else _known(error)
        # Out here no traceback holds tensors of the failed batch any more.
        if self._base.device.type == "cuda":
            known = self._faulty() or known
        work.loop.call_soon_threadsafe(_resolve, work.done, known)
        return None

    def _faulty(self) -> DeviceFault | None:
        """After a failure: what the device has left over is given back, and it is asked for one number.

        Some errors of a GPU stay: every later call fails with the same one, and only a new process gets a device again.
        """
        try:
            torch.cuda.empty_cache()
            torch.ones(1, device=self._base.device).item()
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            log.critical("the device answers nothing any more: %s", error)
            return DeviceFault("the device failed and the server starts again; send the request again")
        return None

    def execute(self, batch: Batch) -> list[Outcome]:
        """Run one batch on the calling thread."""
        return self.launch(batch)()

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Finish:
        """Have the device compute a batch; the call that comes back waits for its outcomes.

        Samples whose caller is gone or late are left out of the pass.
        """
        started = time.monotonic()
        for digest in batch.unwritten:
            lease = batch.leases[digest]
            if lease.adapter is not None:
                self._place(lease.slot, lease.adapter)
        outcomes: list[Outcome] = [DeadlineExceeded("the deadline passed before compute") for _ in batch.samples]
        live = [i for i, sample in enumerate(batch.samples) if _is_wanted(sample, started)]
        if not live:
            return lambda: outcomes
        samples = [batch.samples[i] for i in live]
        slots = {digest: lease.slot for digest, lease in batch.leases.items()}
        way = plan_pass(samples, slots, self._bank, self._base.info.num_layers, self._base.packer)
        self._bank.settle(slots.values())
        results = self._results(samples, slots, self._base.run(way.phases), way)
        used = {part.digest for sample in samples for part in sample.target.parts}
        info = BatchInfo(batch.id, len(samples), way.num_tokens, len(used))

        def finish() -> list[Outcome]:
            branches = results()
            compute_s = self._computed(started)
            for i, sample, own in zip(live, samples, branches, strict=True):
                output = SampleOutput(own, info, started - sample.enqueued_at, compute_s)
                outcomes[i] = output if _is_finite(own) else _not_finite(sample)
            return outcomes

        return finish

    def _computed(self, started: float) -> float:
        """Seconds of the device for a batch that ends now: not those in which it waited for the one before."""
        now = time.monotonic()
        seconds = now - max(started, self._idle_since)
        self._idle_since = now
        return seconds

    def _place(self, slot: int, adapter: Adapter) -> None:
        started = time.monotonic()
        self._bank.write(slot, adapter)
        self._metrics.load_done(Tier.DEVICE, time.monotonic() - started, "ok")

    def _results(
        self, samples: Sequence[Sample], slots: dict[str, int], hidden: Tensor, way: Pass
    ) -> Callable[[], list[tuple[BranchOutput, ...]]]:
        """Every branch's answer, on its way to the host in one transfer; the call that comes back waits for it."""
        answers = self._answers(samples, slots, hidden, way)
        extras = {key: self._extras(samples[key[0]], hidden, way.spans[key]) for key in answers}
        arriving = to_host([tensor for key in answers for tensor in (*answers[key], *extras[key])])

        def wait() -> list[tuple[BranchOutput, ...]]:
            flat, outputs = iter(arriving()), dict[Key, BranchOutput]()
            for key, answer in answers.items():
                values, relations = next(flat), next(flat) if len(answer) > 1 else None
                hidden_and_pooler = [next(flat).numpy() for _ in extras[key]]
                own = relations.numpy() if relations is not None else None
                outputs[key] = BranchOutput(values.numpy(), own, *hidden_and_pooler)
            return [tuple(outputs[i, b] for b in range(len(s.target.branches))) for i, s in enumerate(samples)]

        return wait

    def _answers(
        self, samples: Sequence[Sample], slots: dict[str, int], hidden: Tensor, way: Pass
    ) -> dict[Key, Answer]:
        """By (sample, branch): what its head gives, or its pooled vector. Rows with one head are answered together."""
        keyed = sorted(((_head_key(samples[i], b, slots), (i, b)) for i, b in way.spans), key=lambda pair: pair[0])
        answers: dict[Key, Answer] = {}
        for (slot, number), group in groupby(keyed, key=lambda pair: pair[0]):
            keys = sorted((key for _, key in group), key=lambda key: way.spans[key])
            rows = [way.head_row((i, b), is_whole=samples[i].return_hidden) for i, b in keys]
            if not slot:
                found: list[Answer] = [
                    (pool(hidden, row, samples[i].pooling),) for (i, _), row in zip(keys, rows, strict=True)
                ]
            else:
                head = self._bank[slot].heads[number]
                found = run_head(head, hidden, rows, self._base.heads, self._base.stitching.kernels.uncouple)
            answers.update(zip(keys, found, strict=True))
        return answers

    def _extras(self, sample: Sample, hidden: Tensor, span: tuple[int, int]) -> list[Tensor]:
        """Token vectors and pooler output of a sample that asked for them."""
        if not sample.return_hidden:
            return []
        own, pooler = hidden[slice(*span)], self._base.heads.pooler
        return [own] if pooler is None else [own, pooler(own[:1])[0]]


def _head_key(sample: Sample, branch: int, slots: dict[str, int]) -> tuple[int, int]:
    head = sample.target.branches[branch].head
    return (0, 0) if head is None else (slots[sample.target.parts[head[0]].digest], head[1])


def _is_wanted(sample: Sample, now: float) -> bool:
    return not sample.reply.done() and (sample.deadline is None or now < sample.deadline)


def _is_finite(branches: Sequence[BranchOutput]) -> bool:
    return all(
        np.isfinite(branch.values).all() and (branch.relations is None or np.isfinite(branch.relations).all())
        for branch in branches
    )


def _not_finite(sample: Sample) -> NonFinite:
    # without names: adapters of one content are one here, whoever asks for them
    what = ("the base", "this adapter", "this composition")[min(2, len(sample.target.parts))]
    return NonFinite(f"{what} gives NaN or Inf for this input; its weights overflow, train it again or in float32")


def _known(error: Exception) -> AdapterdError:
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfDeviceMemory("the device's memory has no room for this input; send a shorter one")
    return Internal("the batch failed on the device")


def _resolve(done: asyncio.Future[list[Outcome]], outcomes: list[Outcome] | Exception) -> None:
    if done.cancelled():
        return
    if isinstance(outcomes, Exception):
        done.set_exception(outcomes)
    else:
        done.set_result(outcomes)
