"""Stage 0, in the middle: what every protocol does with a request, whatever it was written in."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import grpc

from adapterd.v1 import inference_pb2 as v1
from server.api.convert import to_request, to_response
from server.api.status import as_adapterd_error, code_of
from server.config import ApiConfig
from server.core import Reply, Request, Tenant, Timings
from server.errors import Overloaded
from server.metrics import Metrics
from server.recent import Recent
from server.tracing import Traced, Tracing

CLOCK_S = 0.02


class Pipeline(Protocol):
    async def infer(self, request: Request) -> Reply: ...


class Answering:
    """Answers requests, and counts them."""

    def __init__(
        self,
        pipeline: Pipeline,
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
        self, method: str, message: v1.PredictRequest, deadline: float | None, tenant: Tenant, parent: str = ""
    ) -> v1.PredictResponse:
        """Answer one request and count it as one of `method`. Raises AdapterdError only.

        deadline   on the clock of `time.monotonic`
        parent     the caller's traceparent
        """
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
            self._recent.failed(message.adapter, tenant.name, code.name, known)
            raise known from (None if known is error else error)
        finally:
            total_s = time.monotonic() - started
            trace_id = ""
            if self._tracing is not None:
                done = Traced(method, message.adapter, tenant.name, code.name, timings, total_s, parent)
                trace_id = self._tracing.record(done)
            self._metrics.request_done(method, code.name, timings, total_s, trace_id)


def _code_of_leaving(deadline: float | None, started: float) -> grpc.StatusCode:
    """Why a call was cancelled: its time is up, or its caller left.

    A caller's own clock may be ahead by the way here and by the hundredth that gRPC rounds a timeout up to.
    """
    if deadline is not None and time.monotonic() >= deadline - CLOCK_S - (deadline - started) / 100:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
