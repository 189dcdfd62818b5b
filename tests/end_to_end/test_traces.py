"""Traces arrive at a collector that takes OTLP, from one process and from fronts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from adapterd import calls, predict_request
from server.app import App
from server.config import ServerConfig

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, int]]:
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield collector, port
    await server.stop(0)


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_callers_trace_goes_on_in_the_server(
    collector: tuple[Collector, int], config: ServerConfig, frontends: int
) -> None:
    spans, port = collector[0].spans, collector[1]
    api = replace(config.api, trace=f"http://127.0.0.1:{port}", trace_share=0.0, frontends=frontends)
    app = App(replace(config, api=api))
    await app.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        predict = channel.unary_unary(**calls.PREDICT.arguments())
        await predict(predict_request("intent", "one"))  # nobody's trace
        await predict(predict_request("intent", "one"), metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),))
    await app.stop()
    async with asyncio.timeout(20):
        while len(spans) < 6:
            await asyncio.sleep(0.05)
    assert {span.name for span in spans} == {"Predict", "admit", "tokenize", "ready", "queue", "compute"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
