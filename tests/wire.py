"""A real gRPC server on a free port around a pipeline that the test writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from adapterd import calls
from adapterd.v1 import inference_pb2 as v1
from adapterd.v1 import replicas_pb2
from server.api.answering import Answering
from server.api.handlers import Context, service_handler
from server.api.replicas import ReplicasServicer
from server.api.servicer import InferenceServicer
from server.config import ApiConfig
from server.core import ANYONE, BatchInfo, Classification, LabelScore, Reply, Request, Result, Tenant, Timings
from server.metrics import Metrics
from server.replicas import Replicas

Infer = Callable[[Request], Awaitable[Reply]]
Note = Callable[[dict[str, str]], None]


@dataclass
class FakePipeline:
    infer: Infer


@asynccontextmanager
async def serve_inference(infer: Infer) -> AsyncIterator[grpc.aio.Channel]:
    async with serve_inference_port(infer) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@asynccontextmanager
async def serve_inference_port(infer: Infer, note: Note = lambda metadata: None) -> AsyncIterator[int]:
    """`note` gets the metadata of every call."""

    class Noting(InferenceServicer):
        async def Predict(self, message: v1.PredictRequest, context: Context, tenant: Tenant) -> v1.PredictResponse:
            metadata: Any = context.invocation_metadata() or ()
            note({**dict(metadata), ":peer": context.peer()})
            return await super().Predict(message, context, tenant)

    config = ApiConfig(max_inputs_per_request=4, max_requests_per_batch=8)
    service = v1.DESCRIPTOR.services_by_name["Inference"]
    answering = Answering(FakePipeline(infer), config, Metrics())
    servicer = Noting(answering, config.max_requests_per_batch, lambda context: ANYONE)
    async with serve_handlers(service_handler(service, servicer, lambda context: ANYONE)) as port:
        yield port


@asynccontextmanager
async def serve_replica(infer: Infer, listed: Path | None, port: int = 0) -> AsyncIterator[int]:
    """One of the replicas that a file lists; None for a server that is alone."""
    more = {"advertise": "127.0.0.1", "replicas": f"file:{listed}", "reload_s": 0.05} if listed else {}
    config = ApiConfig(max_inputs_per_request=4, max_requests_per_batch=8, **more)  # type: ignore[arg-type]
    replicas = Replicas(config)
    answering = Answering(FakePipeline(infer), config, Metrics())
    servicer = InferenceServicer(answering, config.max_requests_per_batch, lambda context: ANYONE, replicas)
    services = (
        (v1.DESCRIPTOR.services_by_name["Inference"], servicer),
        (replicas_pb2.DESCRIPTOR.services_by_name["Replicas"], ReplicasServicer(replicas)),
    )
    handlers = [service_handler(*each, lambda context: ANYONE) for each in services]
    async with serve_handlers(*handlers, grace_s=1, port=port) as port:
        await replicas.start(port)
        yield port
        await replicas.stop()


@asynccontextmanager
async def serve_handlers(*handlers: grpc.GenericRpcHandler, grace_s: float = 0, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace_s)


def make_reply(request: Request) -> Reply:
    """Each input answered with its own text as the label."""
    batch = BatchInfo(id=7, num_samples=len(request.inputs), num_tokens=5, num_adapters=1)
    results = tuple(
        Result(Classification((LabelScore(getattr(item, "text", "ids"), 1.0),)), 5, False, batch)
        for item in request.inputs
    )
    return Reply(request.adapter, "d1", results, Timings(admit_s=0.001))


def request_of(adapter: str, *texts: str) -> v1.PredictRequest:
    inputs = [v1.Input(text=v1.Text(text=text)) for text in texts]
    return v1.PredictRequest(adapter=adapter, inputs=inputs)


def predict(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(**calls.PREDICT.arguments())


def predict_batch(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(**calls.PREDICT_BATCH.arguments())


def predict_stream(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(**calls.PREDICT_STREAM.arguments())
