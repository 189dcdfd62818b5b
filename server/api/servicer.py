"""Stage 0, Inference: convert, call the pipeline, convert back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from adapterd.v1 import inference_pb2 as v1
from server.api.convert import to_request, to_response
from server.api.handlers import Caller, Context
from server.api.status import as_adapterd_error, code_of, to_status
from server.api.stream import answer_stream
from server.config import ApiConfig
from server.core import Reply, Request, Tenant, Timings
from server.errors import AdapterdError, InvalidInput, Overloaded
from server.metrics import Metrics

CLOCK_S = 0.02


class Pipeline(Protocol):
    async def infer(self, request: Request) -> Reply: ...


class InferenceServicer:
    """The RPCs of `adapterd.v1.Inference`, named as in the proto."""

    def __init__(self, pipeline: Pipeline, config: ApiConfig, metrics: Metrics, caller: Caller) -> None:
        self._caller = caller
        self._pipeline = pipeline
        self._config = config
        self._metrics = metrics

    async def Predict(self, message: v1.PredictRequest, context: Context, tenant: Tenant) -> v1.PredictResponse:
        return await self._predict("Predict", message, deadline_of(context), tenant)

    async def PredictBatch(
        self, message: v1.PredictBatchRequest, context: Context, tenant: Tenant
    ) -> v1.PredictBatchResponse:
        limit = self._config.max_requests_per_batch
        if not 1 <= len(message.requests) <= limit:
            raise InvalidInput(f"{len(message.requests)} requests are not between 1 and {limit}, the limit")
        deadline = deadline_of(context)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._outcome("PredictBatch", request, deadline, tenant))
                for request in message.requests
            ]
        return v1.PredictBatchResponse(outcomes=[task.result() for task in tasks])

    async def PredictStream(
        self, messages: AsyncIterator[v1.PredictStreamRequest], context: Context, tenant: Tenant
    ) -> None:
        deadline = deadline_of(context)

        async def answer(message: v1.PredictStreamRequest) -> v1.PredictStreamResponse:
            outcome = await self._streamed(message, deadline, context)
            if outcome.HasField("error"):
                return v1.PredictStreamResponse(id=message.id, error=outcome.error)
            return v1.PredictStreamResponse(id=message.id, response=outcome.response)

        await answer_stream(messages, answer, context.write)

    async def _streamed(self, message: v1.PredictStreamRequest, deadline: float | None, context: Context) -> v1.Outcome:
        """One message of a stream, which may outlive the right to send it."""
        try:
            tenant = self._caller(context)
        except AdapterdError as error:
            return v1.Outcome(error=to_status(error))
        return await self._outcome("PredictStream", message.request, _earlier(deadline, message), tenant)

    async def _outcome(
        self, method: str, message: v1.PredictRequest, deadline: float | None, tenant: Tenant
    ) -> v1.Outcome:
        """One request among several: its failure is an answer."""
        try:
            return v1.Outcome(response=await self._predict(method, message, deadline, tenant))
        except AdapterdError as error:
            return v1.Outcome(error=to_status(error))

    async def _predict(
        self, method: str, message: v1.PredictRequest, deadline: float | None, tenant: Tenant
    ) -> v1.PredictResponse:
        """Answer one request and count it. Raises AdapterdError only."""
        started, timings, code = time.monotonic(), Timings(), grpc.StatusCode.CANCELLED
        try:
            reply = await self._pipeline.infer(to_request(message, self._config, deadline, tenant))
            timings, code = reply.timings, grpc.StatusCode.OK
            self._metrics.tenant_done(tenant.name, sum(result.num_tokens for result in reply.results))
            return to_response(reply)
        except asyncio.CancelledError:
            code = _code_of_leaving(deadline, started)
            raise
        except Exception as error:
            known = as_adapterd_error(error)
            code = code_of(known)
            if isinstance(known, Overloaded):
                self._metrics.refusal_took(time.monotonic() - started)
            else:
                self._metrics.tenant_failed(tenant.name)
            raise known from (None if known is error else error)
        finally:
            self._metrics.request_done(method, code.name, timings, time.monotonic() - started)


def deadline_of(context: Context) -> float | None:
    """The call's deadline on the clock of `time.monotonic`; None if it has none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _code_of_leaving(deadline: float | None, started: float) -> grpc.StatusCode:
    """Why gRPC cancelled a call: its time is up, or its caller left.

    A caller's own clock may be ahead by the way here and by the hundredth that gRPC rounds a timeout up to.
    """
    if deadline is not None and time.monotonic() >= deadline - CLOCK_S - (deadline - started) / 100:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _earlier(deadline: float | None, message: v1.PredictStreamRequest) -> float | None:
    if not message.HasField("timeout"):
        return deadline
    own = time.monotonic() + message.timeout.seconds + message.timeout.nanos / 1e9
    return own if deadline is None else min(deadline, own)
