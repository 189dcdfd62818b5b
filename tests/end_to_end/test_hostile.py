"""Hostile checkpoints beside good ones: each is refused with a reason, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import hostile
import psutil
import pytest
import torch
from make_adapters import make_adapter

from adapterd import AsyncClient, Error
from server.app import App
from server.config import ServerConfig
from server.core import BaseInfo

NEIGHBOURS = ("intent", "topics")
# As a word of its own: what a message says of a tensor may have slashes inside.
ABSOLUTE_PATH = re.compile(r"(?:^|[\s'\"(:])/[A-Za-z]")


@pytest.fixture
def config(config: ServerConfig) -> ServerConfig:
    return replace(config, cache=replace(config.cache, max_adapter_bytes=hostile.MAX_BYTES, watch_s=0.05))


async def logits(client: AsyncClient, name: str) -> list[float]:
    reply = await client.predict(name, "a neighbour asks", return_logits=True, timeout=20)
    return list(reply.results[0].logits.values)


@asynccontextmanager
async def asked_meanwhile(client: AsyncClient) -> AsyncIterator[None]:
    """Neighbours are asked all the time, and answer as they did before, to the last bit."""
    before = {name: await logits(client, name) for name in NEIGHBOURS}
    is_over = asyncio.Event()

    async def ask() -> None:
        while True:
            assert {name: await logits(client, name) for name in NEIGHBOURS} == before
            if is_over.is_set():  # once more than there was to load
                return
            await asyncio.sleep(0.005)  # one core has to do for all of it

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        try:
            yield
        finally:
            is_over.set()


async def refusal(client: AsyncClient, name: str) -> Error:
    with pytest.raises(Error) as caught:
        await client.load(name, timeout=20)
    return caught.value


def check_refusal(error: Error, codes: set[grpc.StatusCode], adapters_path: Path) -> None:
    assert error.code in codes, error
    assert error.reason and 10 < len(error.message) <= 1024
    assert str(adapters_path) not in error.message and not ABSOLUTE_PATH.search(error.message)
    assert "Traceback" not in error.message and "root:" not in error.message
    assert not (adapters_path.parent / hostile.MARKER).exists()


def codes_of(kind: str) -> set[grpc.StatusCode]:
    """A folder that only looks like an adapter's may have been listed meanwhile."""
    refused = {grpc.StatusCode.FAILED_PRECONDITION}
    return refused | {grpc.StatusCode.NOT_FOUND} if kind in hostile.ABSENT else refused


def test_there_is_something_that_would_run(tmp_path: Path, base_info: BaseInfo) -> None:
    hostile.KINDS["pickle_runs_code_among_tensors"](tmp_path / "adapters" / "trap", base_info)
    torch.load(tmp_path / "adapters" / "trap" / hostile.PICKLE, weights_only=False)
    assert (tmp_path / hostile.MARKER).exists()


@pytest.mark.parametrize("kind", hostile.KINDS)
async def test_hostile_adapter_is_refused_and_its_neighbours_answer_as_before(
    client: AsyncClient, adapters_path: Path, base_info: BaseInfo, kind: str
) -> None:
    async with asked_meanwhile(client):
        await asyncio.to_thread(hostile.place, kind, adapters_path / "hostile", base_info)
        check_refusal(await refusal(client, "hostile"), codes_of(kind), adapters_path)
        with pytest.raises(Error) as caught:
            await client.predict("hostile", "x", timeout=20)
        check_refusal(caught.value, codes_of(kind), adapters_path)


@pytest.mark.parametrize("name", hostile.NAMES)
async def test_folder_whose_name_cannot_be_an_adapters_is_not_found(
    client: AsyncClient, adapters_path: Path, base_info: BaseInfo, name: str
) -> None:
    async with asked_meanwhile(client):
        make_adapter(adapters_path.parent / "aside", base_info)
        (adapters_path.parent / "aside").rename(adapters_path / name)
        error = await refusal(client, name)
        check_refusal(error, {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}, adapters_path)
    assert name not in {adapter.name async for adapter in client.list()}


async def test_all_hostile_adapters_at_once_are_refused_each_for_itself(
    client: AsyncClient, adapters_path: Path, base_info: BaseInfo
) -> None:
    async with asked_meanwhile(client):
        errors = await load_all(client, adapters_path, base_info)
    for kind, error in errors.items():
        check_refusal(error, codes_of(kind), adapters_path)
    assert set(NEIGHBOURS) <= {adapter.name async for adapter in client.list()}


async def load_all(client: AsyncClient, adapters_path: Path, base: BaseInfo) -> dict[str, Error]:
    def write() -> None:
        for kind in hostile.KINDS:
            if not os.path.lexists(adapters_path / kind):
                hostile.place(kind, adapters_path / kind, base)

    await asyncio.to_thread(write)
    errors = await asyncio.gather(*(refusal(client, kind) for kind in hostile.KINDS))
    return dict(zip(hostile.KINDS, errors, strict=True))


async def test_refusals_leave_no_thread_file_or_process_behind(
    app: App, client: AsyncClient, adapters_path: Path, base_info: BaseInfo
) -> None:
    await load_all(client, adapters_path, base_info)  # threads and the reader of pickles are there from now on
    before = held()
    await load_all(client, adapters_path, base_info)
    assert all(now <= then + 2 for now, then in zip(held(), before, strict=True)), (before, held())
    app.adapters.check_integrity()


def held() -> tuple[int, int, int]:
    """Threads, open files, child processes."""
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(psutil.Process().children(recursive=True))
