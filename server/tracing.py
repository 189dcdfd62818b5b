"""Traces for OpenTelemetry: a span per request, and in it one per stage. Needs the extra "trace"."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from server.config import ApiConfig
from server.core import Timings
from server.errors import InvalidInput
from server.metrics import STAGES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PARENT = "traceparent"  # W3C Trace Context
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Traced:
    """What a span tells of a request. `parent` is the caller's traceparent, or empty."""

    method: str
    adapter: str
    tenant: str
    outcome: str
    timings: Timings
    total_s: float
    parent: str = ""


class Tracing:
    """Spans are made when a request is over: nothing of it runs before the answer.

    endpoint   of a collector that takes OTLP over gRPC, "http://127.0.0.1:4317"
    share      of requests whose caller does not say whether it traces them
    exporter   where spans go instead

    Raises InvalidInput without the libraries.
    """

    def __init__(self, endpoint: str, share: float, exporter: SpanExporter | None = None) -> None:
        if find_spec("opentelemetry.sdk") is None:
            raise InvalidInput(f"trace {endpoint!r} needs OpenTelemetry: pip install 'adapterd[trace]'")
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint, insecure=not endpoint.startswith("https"))
        resource = Resource.create({"service.name": "adapterd", "service.version": version("adapterd")})
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("adapterd")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, done: Traced) -> str:
        """The id of the trace in hex; empty where this request is not traced."""
        end = time.time_ns()
        at = end - round(done.total_s * NS)
        context = self._propagator.extract({PARENT: done.parent}) if done.parent else None
        attributes: Mapping[str, Any] = {
            "adapterd.adapter": done.adapter,
            "adapterd.tenant": done.tenant,
            "adapterd.outcome": done.outcome,
        }
        span = self._tracer.start_span(done.method, context, start_time=at, attributes=attributes)
        if not span.is_recording():
            return ""
        self._record_stages(span, done.timings, at)
        span.end(end)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """What was recorded goes out first."""
        self._provider.shutdown()

    def _record_stages(self, parent: Any, timings: Timings, at: int) -> None:
        from opentelemetry.trace import set_span_in_context

        inside = set_span_in_context(parent)
        for stage in STAGES[:-1]:  # not of the whole
            seconds = getattr(timings, f"{stage}_s")
            if seconds > 0:
                until = at + round(seconds * NS)
                self._tracer.start_span(stage, inside, start_time=at).end(until)
                at = until


def tracing_of(config: ApiConfig) -> Tracing | None:
    return Tracing(config.trace, config.trace_share) if config.trace else None


def parent_of(metadata: Any) -> str:
    """The traceparent in a call's metadata or headers; empty if there is none."""
    return next((str(value) for key, value in metadata or () if key == PARENT), "")
