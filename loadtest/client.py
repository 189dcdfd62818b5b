"""The open-loop generator: sends each request at its time, whatever came back. Runs in processes of its own.

Latency counts from the time a request was *due*, not from when it was sent: a server that stalls is charged for every
request that came due meanwhile, whether or not the generator got round to sending it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import grpc.aio
import numpy as np
import uvloop
from numpy.typing import NDArray

from adapterd import calls
from adapterd.requests import predict_request
from adapterd.v1 import adapters_pb2
from adapterd.v1 import inference_pb2 as v1
from loadtest.arrivals import Schedule
from loadtest.senders import Answer, Sender, StreamSender, UnarySender

STAGES = ("admit", "tokenize", "ready", "queue", "compute")
GRACE_S = 1.0  # beyond the deadline, until a request without an answer is given up
START_S = 0.5  # from the order to the first request: connections are opened meanwhile


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What to send and where.

    names, texts   of the schedule's indices
    cold_from      adapters from this index on are unloaded after each answer
    num_channels   connections of each tenant
    tokens         of the schedule's tenants, for servers that tell callers apart
    start_at       of the schedule, on the clock of `time.monotonic`; the generators set it
    """

    server: str
    names: tuple[str, ...]
    texts: tuple[str, ...]
    schedule: Schedule
    cold_from: int
    timeout_s: float
    rpc: Literal["stream", "unary"] = "stream"
    num_channels: int = 8
    tokens: tuple[str, ...] = ()
    start_at: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What became of N requests, as columns [N] in the order of the schedule. Seconds count from its start.

    sent_s    when gRPC took the request; NaN if it never did
    done_s    when the answer was read; NaN if there was none in time
    code      grpc status code
    stages    [N, 5] seconds that the server spent in each of STAGES
    batch     [N, 4] id, samples, tokens, adapters of the forward pass
    """

    schedule: Schedule
    sent_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    code: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    stages: NDArray[np.float64]
    batch: NDArray[np.int64]

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """From when each was due; endless for what was refused, failed or never answered."""
        return np.where(self.code == 0, self.done_s - self.schedule.at_s, np.inf)

    @property
    def lag_s(self) -> NDArray[np.float64]:
        """How late each was sent."""
        return np.nan_to_num(self.sent_s - self.schedule.at_s, nan=np.inf)


def ready() -> None:
    """Does nothing: a process that has run it has started and has everything imported."""


def fire(order: Order) -> Outcomes:
    """Send everything, wait for the answers. Returns at most `timeout_s` + GRACE_S after the last request was due."""
    gc.collect()
    gc.disable()  # a collection in between would send late
    try:
        return uvloop.run(_fire(order))
    finally:
        gc.enable()


async def _fire(order: Order) -> Outcomes:
    return await _Run(order).run()


class _Run:
    """One order, on the running event loop."""

    def __init__(self, order: Order) -> None:
        self._order = order
        num = len(order.schedule)
        never = np.full(num, np.nan)
        codes = np.full(num, grpc.StatusCode.DEADLINE_EXCEEDED.value[0], dtype=np.int64)
        self._outcomes = Outcomes(
            order.schedule,
            never,
            never.copy(),
            codes,
            np.zeros(num, dtype=np.int64),
            np.zeros((num, len(STAGES))),
            np.zeros((num, 4), dtype=np.int64),
        )
        self._num_open = num
        self._is_done = asyncio.Event()
        self._admin = grpc.aio.insecure_channel(order.server)
        self._unload: Any = self._admin.unary_unary(**calls.UNLOAD.arguments())
        self._unloads: list[asyncio.Task[None]] = []

    async def run(self) -> Outcomes:
        """Raises grpc.RpcError if what was to be cold again could not be unloaded."""
        tokens = self._order.tokens or [""] * len(self._order.schedule.tenants)
        senders = [self._sender(token) for token in tokens]  # tenants share no connection
        try:
            await asyncio.gather(*(sender.open() for sender in senders))
            await self._send_all(senders)
            await self._wait()
            await asyncio.gather(*self._unloads)
        finally:
            await asyncio.gather(*(sender.close() for sender in senders))
            await self._admin.close()
        return self._outcomes

    def _sender(self, token: str) -> Sender:
        order, kind = self._order, StreamSender if self._order.rpc == "stream" else UnarySender
        return kind(order.server, order.num_channels, order.timeout_s, self._on_sent, self._on_answer, token)

    async def _send_all(self, senders: list[Sender]) -> None:
        order = self._order
        schedule = order.schedule
        due = (schedule.at_s + order.start_at).tolist()
        columns = zip(due, schedule.adapter.tolist(), schedule.text.tolist(), schedule.tenant.tolist(), strict=True)
        for index, (due_at, adapter, text, tenant) in enumerate(columns):
            request = predict_request(order.names[adapter], order.texts[text])
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            while time.monotonic() < due_at:  # timers count in milliseconds and may end a little early
                await asyncio.sleep(0)
            senders[tenant].send(index, request)

    async def _wait(self) -> None:
        if not self._num_open:
            return
        try:
            async with asyncio.timeout(self._order.timeout_s + GRACE_S):
                await self._is_done.wait()
        except TimeoutError:
            pass  # what is missing keeps the code it has had from the start

    def _now(self) -> float:
        return time.monotonic() - self._order.start_at

    def _on_sent(self, index: int) -> None:
        self._outcomes.sent_s[index] = self._now()

    def _on_answer(self, index: int, answer: Answer) -> None:
        outcomes = self._outcomes
        outcomes.done_s[index] = self._now()
        if isinstance(answer, int):
            outcomes.code[index] = answer
        else:
            outcomes.code[index] = 0
            self._read(index, answer)
            if outcomes.schedule.adapter[index] >= self._order.cold_from:
                self._unloads.append(asyncio.create_task(self._make_cold(answer.adapter)))
        self._num_open -= 1
        if not self._num_open:
            self._is_done.set()

    def _read(self, index: int, response: v1.PredictResponse) -> None:
        result, timings = response.results[0], response.timings
        batch = result.batch
        durations = (timings.admit, timings.tokenize, timings.ready, timings.queue, timings.compute)
        self._outcomes.num_tokens[index] = result.num_tokens
        self._outcomes.stages[index] = [duration.seconds + duration.nanos / 1e9 for duration in durations]
        self._outcomes.batch[index] = (batch.id, batch.num_samples, batch.num_tokens, batch.num_adapters)

    async def _make_cold(self, name: str) -> None:
        await self._unload(adapters_pb2.UnloadRequest(name=name))
