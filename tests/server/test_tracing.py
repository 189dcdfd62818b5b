"""Spans of the real SDK: one per request, one per stage, under the caller's trace."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.exposition import generate_latest

from server.core import Timings
from server.metrics import Metrics
from server.tracing import Traced, Tracing, parent_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
TIMINGS = Timings(admit_s=0.1, queue_s=0.25, compute_s=0.5)


def done(parent: str = "") -> Traced:
    return Traced("Predict", "intent", "acme", "OK", TIMINGS, 1.0, parent)


def test_stages_lie_in_the_request_which_lies_in_the_callers_trace() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing("", 0.0, exporter)
    assert tracing.record(done(f"00-{TRACE}-b7ad6b7169203331-01")) == TRACE
    tracing.close()
    *stages, request = exporter.get_finished_spans()
    assert [span.name for span in stages] == ["admit", "queue", "compute"]
    assert f"{request.context.trace_id:032x}" == TRACE and f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.attributes["adapterd.adapter"] == "intent"
    assert all(span.parent.span_id == request.context.span_id for span in stages)
    assert stages[0].start_time == request.start_time and stages[0].end_time == stages[1].start_time
    assert stages[2].end_time - stages[2].start_time == 500_000_000
    assert request.end_time - request.start_time == 1_000_000_000


@pytest.mark.parametrize(("share", "flag", "is_traced"), [(0.0, "", False), (1.0, "", True), (1.0, "00", False)])
def test_a_caller_decides_and_else_the_share(share: float, flag: str, is_traced: bool) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing("", share, exporter)
    parent = f"00-{TRACE}-b7ad6b7169203331-{flag}" if flag else ""
    assert bool(tracing.record(done(parent))) is is_traced
    tracing.close()
    assert bool(exporter.get_finished_spans()) is is_traced


def test_a_traced_request_is_an_exemplar_of_its_latency() -> None:
    metrics = Metrics()
    metrics.request_done("Predict", "OK", TIMINGS, 1.0, TRACE)
    metrics.request_done("Predict", "OK", TIMINGS, 0.01)
    lines = [line for line in generate_latest(metrics.registry).decode().splitlines() if "trace_id" in line]
    assert len(lines) == 1 and 'stage="total"' in lines[0] and TRACE in lines[0]


def test_what_is_no_traceparent_starts_a_trace_of_its_own() -> None:
    assert parent_of([("x", "y"), ("traceparent", "00-z")]) == "00-z" and parent_of(None) == ""
    tracing = Tracing("", 1.0, InMemorySpanExporter())
    assert tracing.record(done("00-nonsense")) not in ("", TRACE)
    tracing.close()
