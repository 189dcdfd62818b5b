"""The generator, in its own process, against a real gRPC server whose answers the test writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import grpc
import numpy as np
import pytest
from wire import serve_handlers

from adapterd.v1 import adapters_pb2, inference_pb2
from adapterd.v1 import inference_pb2 as v1
from loadtest.arrivals import Schedule
from loadtest.client import Order, Outcomes
from loadtest.generators import Generators
from server.api.handlers import Context, service_handler
from server.core import ANYONE, Tenant

NAMES = ("fine", "refused", "silent", "rare")
STALL_S = 0.6


@pytest.fixture(scope="module")
def generators() -> Iterator[Generators]:
    with Generators(2) as generators:
        yield generators


@dataclass
class Stub:
    """Answers by the adapter's name. stall_at: how many seconds after the first message its event loop hangs."""

    stall_at: float = float("inf")
    first_at: float | None = None
    num_streams: int = 0
    unloaded: list[str] = field(default_factory=list)

    async def Predict(self, message: v1.PredictRequest, context: Context, tenant: Tenant) -> v1.PredictResponse:
        self._stall()
        if message.adapter == "refused":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        if message.adapter == "silent":
            await asyncio.sleep(60)
        return response(message)

    async def PredictStream(
        self, messages: AsyncIterator[v1.PredictStreamRequest], context: Context, tenant: Tenant
    ) -> None:
        self.num_streams += 1
        async for message in messages:
            self._stall()
            adapter = message.request.adapter
            if adapter == "refused":
                await context.write(v1.PredictStreamResponse(id=message.id, error=v1.Status(code=8)))
            elif adapter == "broken":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            elif adapter != "silent":
                await context.write(v1.PredictStreamResponse(id=message.id, response=response(message.request)))

    async def PredictBatch(
        self, message: v1.PredictBatchRequest, context: Context, tenant: Tenant
    ) -> v1.PredictBatchResponse:
        raise NotImplementedError

    async def Unload(
        self, message: adapters_pb2.UnloadRequest, context: Context, tenant: Tenant
    ) -> adapters_pb2.UnloadResponse:
        self.unloaded.append(message.name)
        return adapters_pb2.UnloadResponse()

    def _stall(self) -> None:
        now = time.monotonic()
        self.first_at = self.first_at or now
        if now >= self.first_at + self.stall_at:
            self.stall_at = float("inf")
            time.sleep(STALL_S)


def response(request: v1.PredictRequest) -> v1.PredictResponse:
    batch = v1.BatchInfo(id=3, num_samples=2, num_tokens=9, num_adapters=1)
    reply = v1.PredictResponse(adapter=request.adapter, results=[v1.Result(num_tokens=5, batch=batch)])
    reply.timings.queue.nanos = 2_000_000
    return reply


async def fire(stub: Stub, generators: Generators, order: Order) -> Outcomes:
    inference = inference_pb2.DESCRIPTOR.services_by_name["Inference"]
    adapters = adapters_pb2.DESCRIPTOR.services_by_name["Adapters"]
    for name in ("List", "Get", "Load", "Pin", "Publish", "Prefetch", "SetTraffic"):
        setattr(stub, name, stub.PredictBatch)  # never called
    async with serve_handlers(
        *(service_handler(it, stub, lambda context: ANYONE) for it in (inference, adapters))
    ) as port:
        return await asyncio.to_thread(generators.fire, replace(order, server=f"127.0.0.1:{port}"))


def order(num: int, seconds: float, adapters: list[int], rpc: Literal["stream", "unary"] = "stream") -> Order:
    """`num` requests at equal distances; `adapters` in turn."""
    at_s, zeros = np.arange(num) * (seconds / num), np.zeros(num, dtype=np.int64)
    requests = Schedule(("all",), at_s, np.resize(np.array(adapters), num), zeros, zeros)
    return Order("", NAMES, ("a text",), requests, cold_from=3, timeout_s=10.0, rpc=rpc, num_channels=2)


@pytest.mark.parametrize("rpc", ["stream", "unary"])
async def test_a_stall_is_charged_for_every_request_that_was_due_meanwhile(
    generators: Generators, rpc: Literal["stream", "unary"]
) -> None:
    outcomes = await fire(Stub(stall_at=0.3), generators, order(130, 1.3, [0], rpc))
    latency = outcomes.latency_s
    assert (latency > 0.5 * STALL_S).sum() >= 24, "the first half of the sixty that came due while nothing was answered"
    assert np.quantile(latency, 0.99) > 0.9 * STALL_S
    assert (outcomes.code == 0).all()


async def test_sending_goes_on_while_nothing_is_answered(generators: Generators) -> None:
    """And more streams are opened, because a server reads each only so far."""
    stub = Stub()
    outcomes = await fire(stub, generators, replace(order(400, 0.4, [2]), timeout_s=1.0))
    assert np.isfinite(outcomes.sent_s).all() and stub.num_streams >= 7
    assert (outcomes.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]).all() and np.isinf(outcomes.latency_s).all()


@pytest.mark.parametrize("rpc", ["stream", "unary"])
async def test_every_outcome_is_what_became_of_that_request(
    generators: Generators, rpc: Literal["stream", "unary"]
) -> None:
    stub = Stub()
    outcomes = await fire(stub, generators, order(40, 0.2, [0, 1, 0, 3], rpc))
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert outcomes.code.tolist() == [0, refused, 0, 0] * 10
    assert outcomes.num_tokens.tolist() == [5, 0, 5, 5] * 10
    assert outcomes.batch[0].tolist() == [3, 2, 9, 1] and outcomes.stages[0].tolist() == [0, 0, 0, 0.002, 0]
    assert (outcomes.done_s >= outcomes.sent_s).all() and (outcomes.lag_s >= 0).all()
    assert stub.unloaded == ["rare"] * 10, "what is to be cold again is unloaded after each answer"


async def test_a_stream_that_breaks_costs_its_own_requests_only(generators: Generators) -> None:
    requests = replace(order(60, 1.2, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), names=("fine", "broken", "", ""))
    outcomes = await fire(Stub(), generators, requests)
    gone = grpc.StatusCode.UNAVAILABLE.value[0]
    assert (outcomes.code[9::10] == gone).all() and set(outcomes.code.tolist()) == {0, gone}
    assert (outcomes.code == 0).sum() >= 45
