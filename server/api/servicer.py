"""Stage 0, Inference: the RPCs that answer requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from adapterd.routing import ROUTE
from adapterd.v1 import inference_pb2 as v1
from server.api.answering import Answering
from server.api.handlers import Caller, Context
from server.api.status import to_status
from server.api.stream import answer_stream
from server.core import Tenant
from server.errors import AdapterdError, InvalidInput
from server.replicas import Replicas
from server.tracing import parent_of


class InferenceServicer:
    """The RPCs of `adapterd.v1.Inference`, named as in the proto."""

    def __init__(
        self, answering: Answering, max_requests_per_batch: int, caller: Caller, replicas: Replicas | None = None
    ) -> None:
        self._answering = answering
        self._replicas = replicas
        self._max_requests_per_batch = max_requests_per_batch
        self._caller = caller

    async def Predict(self, message: v1.PredictRequest, context: Context, tenant: Tenant) -> v1.PredictResponse:
        check_route(route_of(context, message.adapter), message.adapter)
        parent = parent_of(context.invocation_metadata())
        return await self._predict("Predict", message, deadline_of(context), tenant, parent)

    async def PredictBatch(
        self, message: v1.PredictBatchRequest, context: Context, tenant: Tenant
    ) -> v1.PredictBatchResponse:
        limit = self._max_requests_per_batch
        if not 1 <= len(message.requests) <= limit:
            raise InvalidInput(f"{len(message.requests)} requests are not between 1 and {limit}, the limit")
        deadline, parent = deadline_of(context), parent_of(context.invocation_metadata())
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._outcome("PredictBatch", request, deadline, tenant, parent))
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
        parent = parent_of(context.invocation_metadata())
        return await self._outcome("PredictStream", message.request, _earlier(deadline, message), tenant, parent)

    async def _outcome(
        self, method: str, message: v1.PredictRequest, deadline: float | None, tenant: Tenant, parent: str
    ) -> v1.Outcome:
        """One request among several: its failure is an answer."""
        try:
            return v1.Outcome(response=await self._predict(method, message, deadline, tenant, parent))
        except AdapterdError as error:
            return v1.Outcome(error=to_status(error))

    async def _predict(
        self, method: str, message: v1.PredictRequest, deadline: float | None, tenant: Tenant, parent: str
    ) -> v1.PredictResponse:
        response = await self._answering.predict(method, message, deadline, tenant, parent)
        if self._replicas is not None:
            response.replica = self._replicas.own
        return response


def deadline_of(context: Context) -> float | None:
    """The call's deadline on the clock of `time.monotonic`; None if it has none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def route_of(context: Context, adapter: str) -> str:
    """The adapter that a call was routed by; the one that it asks for, where nobody routes."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == ROUTE), adapter)


def check_route(route: str, adapter: str) -> None:
    """Raises InvalidInput where a call was routed by another adapter than it asks for."""
    if route.strip() != adapter.strip():
        raise InvalidInput(
            f"{ROUTE} is {route[:128]!r} and the request asks for {adapter[:128]!r}; make them agree, or leave it out"
        )


def _earlier(deadline: float | None, message: v1.PredictStreamRequest) -> float | None:
    if not message.HasField("timeout"):
        return deadline
    own = time.monotonic() + message.timeout.seconds + message.timeout.nanos / 1e9
    return own if deadline is None else min(deadline, own)
