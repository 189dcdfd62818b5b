"""Processes that call a server as fast as it answers (a closed loop): for what a call costs, not for latency."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import grpc.aio
import uvloop

from adapterd import calls

CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one process does for `seconds`: on each connection, that many calls are always in flight.

    messages   serialized PredictRequests, sent in turn
    """

    server: str
    messages: tuple[bytes, ...]
    num_connections: int
    num_in_flight: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Count:
    """What came of it."""

    num_calls: int
    seconds: float
    cpu_s: float


class Callers:
    """A fixed number of processes."""

    def __init__(self, pool: ProcessPoolExecutor, number: int) -> None:
        self._pool = pool
        self._number = number

    def run(self, load: Load) -> list[Count]:
        """What each of them counted, all working at the same time. A call that fails is raised."""
        return list(self._pool.map(_drive, [load] * self._number))


@contextmanager
def callers(number: int) -> Iterator[Callers]:
    with ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield Callers(pool, number)


def _drive(load: Load) -> Count:
    return uvloop.run(_call_on(load))


async def _call_on(load: Load) -> Count:
    options = [("grpc.use_local_subchannel_pool", 1)]  # or all channels of a process would share a connection
    channels = [grpc.aio.insecure_channel(load.server, options) for _ in range(load.num_connections)]
    try:
        await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), CONNECT_TIMEOUT_S)
        cpu, started = time.process_time(), time.monotonic()
        ends = started + load.seconds
        predicts: list[Any] = [channel.unary_unary(calls.PREDICT.path) for channel in channels]  # bytes in, bytes out
        loops = (
            _call_until(ends, predict, load.messages[number % len(load.messages) :] + load.messages)
            for number, predict in enumerate(predicts * load.num_in_flight)
        )
        num_calls = sum(await asyncio.gather(*loops))
        return Count(num_calls, time.monotonic() - started, time.process_time() - cpu)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _call_until(ends: float, predict: Any, messages: Sequence[bytes]) -> int:
    for number, message in enumerate(cycle(messages)):
        if time.monotonic() >= ends:
            return number
        await predict(message)
    raise AssertionError("a cycle has no end")
