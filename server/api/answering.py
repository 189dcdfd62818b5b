"""Stage 0, in the middle: what every protocol does with a request, whatever it was written in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from adapterd.v1 import inference_pb2 as v1
from server.api.convert import MAX_NAME_CHARS, to_request, to_response
from server.api.status import as_adapterd_error, code_of
from server.config import ApiConfig
from server.core import Reply, Request, Tenant, Timings
from server.engine import Answerer
from server.errors import Overloaded
from server.metrics import Metrics
from server.pipeline import MAX_INLINE_TOKENS
from server.recent import Recent
from server.tracing import Traced, Tracing

CLOCK_S = 0.02
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and until when on the clock of `time.monotonic`."""

    message: v1.PredictRequest
    deadline: float | None = None


class Inferring(Protocol):
    """The part of `server.pipeline.Pipeline` that this file uses."""

    async def infer(self, request: Request) -> Reply: ...
    async def describe(self, adapter: str, version: str, tenant: Tenant) -> Answerer: ...


class Answering:
    """Answers requests, and counts them."""

    def __init__(
        self,
        pipeline: Inferring,
        config: ApiConfig,
        metrics: Metrics,
        recent: Recent | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._config = config
        self._metrics = metrics
        self._recent = recent or Recent()
        self._tracing = tracing

    async def answer(
        self,
        method: str,
        adapter: str,
        read: Callable[[], Asked],
        tenant: Tenant,
        parent: str = "",
        *,
        shape: Callable[[v1.PredictResponse], T],
    ) -> T:
        """Answer one request and count it as one of `method`. Raises AdapterdError only.

        adapter   that it asks for, to be told in logs and traces
        read      gives the request; raises InvalidInput where it is none
        parent    the caller's traceparent
        shape     makes of the response what the protocol answers; raises InvalidInput where it cannot
        """
        started, timings, code = time.monotonic(), Timings(), grpc.StatusCode.CANCELLED
        deadline: float | None = None
        try:
            asked = read()
            deadline = asked.deadline
            reply = await self._pipeline.infer(to_request(asked.message, self._config, deadline, tenant))
            timings = reply.timings
            num_tokens = sum(result.num_tokens for result in reply.results)
            if num_tokens > MAX_INLINE_TOKENS:
                answer = await asyncio.to_thread(_shaped, reply, shape)
            else:
                answer = _shaped(reply, shape)
            code = grpc.StatusCode.OK
            self._metrics.tenant_done(tenant.name, num_tokens)
            return answer
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
            self._recent.failed(adapter[:MAX_NAME_CHARS], tenant.name, code.name, known)
            raise known from (None if known is error else error)
        finally:
            total_s = time.monotonic() - started
            trace_id = ""
            if self._tracing is not None:
                name = adapter[:MAX_NAME_CHARS]
                trace_id = self._tracing.record(Traced(method, name, tenant.name, code.name, timings, total_s, parent))
            self._metrics.request_done(method, code.name, timings, total_s, trace_id)

    async def predict(
        self, method: str, message: v1.PredictRequest, deadline: float | None, tenant: Tenant, parent: str = ""
    ) -> v1.PredictResponse:
        """A request that is one already. Raises AdapterdError only."""
        return await self.answer(
            method, message.adapter, lambda: Asked(message, deadline), tenant, parent, shape=lambda response: response
        )

    async def describe(self, adapter: str, version: str, tenant: Tenant) -> Answerer:
        """What would answer; loaded if need be, and so counted against the tenant's limits as a request is."""
        return await self._pipeline.describe(adapter, version, tenant)


def _shaped(reply: Reply, shape: Callable[[v1.PredictResponse], T]) -> T:
    return shape(to_response(reply))


def _code_of_leaving(deadline: float | None, started: float) -> grpc.StatusCode:
    """Why a call was cancelled: its time is up, or its caller left.

    A caller's own clock may be ahead by the way here and by the hundredth that gRPC rounds a timeout up to.
    """
    if deadline is not None and time.monotonic() >= deadline - CLOCK_S - (deadline - started) / 100:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
