"""The standard health service over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from wire import serve_handlers

from server.api.handlers import service_handler
from server.api.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, HealthServicer
from server.core import ANYONE

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]


@dataclass
class Served:
    servicer: HealthServicer
    stub: health_pb2_grpc.HealthStub


@pytest.fixture
async def health() -> AsyncIterator[Served]:
    servicer = HealthServicer(["adapterd.v1.Inference"])
    handler = service_handler(SERVICE, servicer, lambda context: ANYONE)
    async with serve_handlers(handler) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(servicer, health_pb2_grpc.HealthStub(channel))


def request(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_check_follows_the_state(health: Served) -> None:
    assert (await health.stub.Check(request())).status == NOT_SERVING
    health.servicer.set_serving(True)
    assert (await health.stub.Check(request("adapterd.v1.Inference"))).status == SERVING


async def test_list_has_every_service_where_the_stubs_know_it(health: Served) -> None:
    health.servicer.set_serving(True)
    if "List" in SERVICE.methods_by_name:  # of the newer set of `make matrix`
        found = (await health.stub.List(health_pb2.HealthListRequest())).statuses
        assert {name: one.status for name, one in found.items()} == {"": SERVING, "adapterd.v1.Inference": SERVING}


def test_every_method_of_the_stubs_has_its_answer() -> None:
    assert all(callable(getattr(HealthServicer, method.name)) for method in SERVICE.methods)


async def test_check_of_an_unknown_service_is_not_found(health: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.stub.Check(request("other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_every_watcher_hears_of_a_change_also_after_another_left(health: Served) -> None:
    health.servicer.set_serving(True)
    first, second = health.stub.Watch(request()), health.stub.Watch(request())
    assert (await first.read()).status == (await second.read()).status == SERVING
    first.cancel()
    health.servicer.set_serving(False)
    assert (await second.read()).status == NOT_SERVING
    second.cancel()


async def test_watch_of_an_unknown_service_says_so(health: Served) -> None:
    call = health.stub.Watch(request("other"))
    assert (await call.read()).status == SERVICE_UNKNOWN
    call.cancel()
