"""Saturation: so many calls at a time that the server always has a full batch to form."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
import uvloop

from adapterd import calls
from adapterd.requests import predict_request
from adapterd.v1 import inference_pb2 as v1

MIN_TIMES = 6  # moments of a run at which forward passes were heard of, however long that takes


@dataclass(frozen=True, slots=True)
class Flood:
    """What to keep in flight. Adapters are dealt out in turn.

    requests_per_call   of PredictBatch, one text each
    """

    server: str
    names: tuple[str, ...]
    texts: tuple[str, ...]
    seconds: float
    requests_per_call: int = 8
    num_calls: int = 16


@dataclass(frozen=True, slots=True)
class Flow:
    """What came out.

    max_batch_tokens   of a forward pass: the budget that the server filled
    lengths            tokens of a text: least and most
    """

    tokens_per_s: float
    requests_per_s: float
    num_errors: int
    mean_batch_tokens: float
    max_batch_tokens: int
    lengths: tuple[int, int]


def flood(order: Flood) -> Flow:
    """Run in a process of its own."""
    return uvloop.run(_Flood(order).run())


class _Flood:
    def __init__(self, order: Flood) -> None:
        self._order = order
        self._next = 0
        self._until = 0.0
        self._num_errors = 0
        self._passes: dict[int, list[float]] = {}  # by id: when it was first heard of, its tokens and requests
        self._lengths: list[int] = []

    async def run(self) -> Flow:
        order = self._order
        async with grpc.aio.insecure_channel(order.server, calls.channel_options(max_retries=0)) as channel:
            await channel.channel_ready()
            call: Any = channel.unary_unary(**calls.PREDICT_BATCH.arguments())
            self._until = time.monotonic() + order.seconds
            await asyncio.gather(*(self._keep_calling(call) for _ in range(order.num_calls)))
        return self._flow()

    async def _keep_calling(self, call: Any) -> None:
        while not self._is_over():
            reply = await call(v1.PredictBatchRequest(requests=self._requests()))
            self._read(reply, time.monotonic())

    def _is_over(self) -> bool:
        """A slow server gets more time: a rate needs passes to be told from."""
        now = time.monotonic()
        if len({heard for heard, _, _ in self._passes.values()}) < MIN_TIMES and not self._num_errors:
            self._until = max(self._until, now + 1e-3)
        return now >= self._until

    def _requests(self) -> list[v1.PredictRequest]:
        order = self._order
        first, self._next = self._next, self._next + order.requests_per_call
        return [
            predict_request(order.names[i % len(order.names)], order.texts[i % len(order.texts)])
            for i in range(first, self._next)
        ]

    def _read(self, reply: v1.PredictBatchResponse, now: float) -> None:
        for outcome in reply.outcomes:
            if outcome.HasField("error"):
                self._num_errors += 1
                continue
            [result] = outcome.response.results
            heard = self._passes.setdefault(result.batch.id, [now, 0, 0])
            heard[1] += result.num_tokens
            heard[2] += 1
            self._lengths.append(result.num_tokens)

    def _flow(self) -> Flow:
        """From one moment at which forward passes were heard of to another.

        The first passes find a queue that is still filling, the last ones one that is running dry: both are left out.
        """
        passes = [row for row in self._passes.values() if row[0] <= self._until]
        times = sorted({heard for heard, _, _ in passes})
        kept = times[len(times) // 5 :]
        if len(kept) < 2:
            raise RuntimeError(f"the server answered {len(passes)} batches and failed {self._num_errors} requests")
        counted = np.array([row for row in passes if row[0] > kept[0]])
        span_s = kept[-1] - kept[0]
        return Flow(
            tokens_per_s=float(counted[:, 1].sum() / span_s),
            requests_per_s=float(counted[:, 2].sum() / span_s),
            num_errors=self._num_errors,
            mean_batch_tokens=float(counted[:, 1].mean()),
            max_batch_tokens=int(counted[:, 1].max()),
            lengths=(min(self._lengths), max(self._lengths)),
        )
