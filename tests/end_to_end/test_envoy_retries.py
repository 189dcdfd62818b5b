"""What the shipped Envoy does with refusals. The servers refuse as ours do, whenever the test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from deployed import read
from envoy_cluster import SHIPPED, Envoy, NameServer, free_ports, names_of, running, until
from grpc_health.v1.health import aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from adapterd import predict_request
from adapterd.v1 import adapters_pb2, adapters_pb2_grpc
from adapterd.v1 import inference_pb2 as v1
from adapterd.v1.inference_pb2_grpc import InferenceServicer, InferenceStub, add_InferenceServicer_to_server
from server.api.status import abort
from server.errors import AdapterdError, Overloaded, Unavailable

Context = grpc.aio.ServicerContext[object, object]
METADATA = (("x-adapter", "a"),)
REFUSALS = [Overloaded("no room", retry_after_s=0.123), Unavailable("draining")]


@dataclass(eq=False)
class Refusing(InferenceServicer, adapters_pb2_grpc.AdaptersServicer):
    """One that answers until it has an error."""

    host: str
    error: AdapterdError | None = None
    calls: list[str] = field(default_factory=list)

    async def Predict(self, request: v1.PredictRequest, context: Context) -> v1.PredictResponse:
        self.calls.append("Predict")
        if self.error is not None:
            await abort(context, self.error)
        return v1.PredictResponse(replica=self.host)

    async def Load(self, request: adapters_pb2.LoadRequest, context: Context) -> adapters_pb2.LoadResponse:
        self.calls.append("Load")
        if self.error is not None:
            await abort(context, self.error)
        return adapters_pb2.LoadResponse()

    async def serve(self, port: int) -> grpc.aio.Server:
        server = grpc.aio.server()
        add_InferenceServicer_to_server(self, server)
        adapters_pb2_grpc.add_AdaptersServicer_to_server(self, server)
        health = aio.HealthServicer()
        await health.set("", HealthCheckResponse.SERVING)
        add_HealthServicer_to_server(health, server)
        server.add_insecure_port(f"{self.host}:{port}")
        await server.start()
        return server


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One that runs in a thread, for servers that answer while the test waits."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def servers(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[list[Refusing], int]]:
    """Three, and their port."""
    [port] = free_ports(1)
    found = [Refusing(f"127.0.2.{number}") for number in (1, 2, 3)]
    with ExitStack() as stack:
        for servicer in found:
            server = asyncio.run_coroutine_threadsafe(servicer.serve(port), loop).result()
            stack.callback(lambda one: asyncio.run_coroutine_threadsafe(one.stop(None), loop).result(), server)
        yield found, port


@pytest.fixture
def envoy(servers: tuple[list[Refusing], int], tmp_path: Path) -> Iterator[Envoy]:
    names = NameServer()
    names.names |= {name: one.host for name, one in zip(names_of(read(SHIPPED)), servers[0], strict=False)}
    with ExitStack() as stack:
        stack.callback(names.close)
        envoy = stack.enter_context(running(tmp_path, servers[1], names.port))
        until(lambda: len(envoy.healthy()) == len(servers[0]))
        yield envoy


@pytest.fixture
def channel(envoy: Envoy) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(envoy.address, options=[("grpc.enable_retries", 0)]) as channel:
        yield channel


def home(servers: list[Refusing], channel: grpc.Channel) -> Refusing:
    """The one that an adapter's calls go to."""
    host = InferenceStub(channel).Predict(predict_request("a", "x"), timeout=10, metadata=METADATA).replica
    [found] = [one for one in servers if one.host == host]
    return found


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.reason)
def test_what_one_refuses_is_asked_again_elsewhere(
    servers: tuple[list[Refusing], int], channel: grpc.Channel, error: AdapterdError
) -> None:
    first = home(servers[0], channel)
    first.error = error
    for _ in range(8):
        reply = InferenceStub(channel).Predict(predict_request("a", "x"), timeout=10, metadata=METADATA)
        assert reply.replica != first.host
    assert len(first.calls) == 1 + 8  # each was tried there first: errors in answers take no server away


def test_what_all_refuse_comes_back_as_the_last_one_said_it(
    servers: tuple[list[Refusing], int], channel: grpc.Channel
) -> None:
    for one in servers[0]:
        one.error = Overloaded("no room", retry_after_s=0.123)
    with pytest.raises(grpc.RpcError) as caught:
        InferenceStub(channel).Predict(predict_request("a", "x"), timeout=10, metadata=METADATA)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(caught.value.trailing_metadata())
    assert (trailers["grpc-retry-pushback-ms"], trailers["adapterd-reason"]) == ("123", "OVERLOADED")
    assert [len(one.calls) for one in servers[0]] == [1, 1, 1]  # no server twice


def test_a_change_is_never_made_twice(servers: tuple[list[Refusing], int], channel: grpc.Channel) -> None:
    for one in servers[0]:
        one.error = Unavailable("draining")
    with pytest.raises(grpc.RpcError) as caught:
        adapters_pb2_grpc.AdaptersStub(channel).Load(adapters_pb2.LoadRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert sum(len(one.calls) for one in servers[0]) == 1
