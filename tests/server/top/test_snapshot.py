"""Rates, latencies and shares between two looks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from server.core import Tier, Timings
from server.metrics import Metrics
from server.top.scrape import NoAnswer, Scrape, parsed, url_of
from server.top.snapshot import LastUse, quantile_of, snapshot

INF = float("inf")
TIMINGS = Timings(admit_s=0.0001, tokenize_s=0.001, ready_s=0.0, queue_s=0.002, compute_s=0.02)


def look(metrics: Metrics, at: float, more: str = "") -> Scrape:
    return parsed(metrics.render().decode() + more, at, "here")


def between(happens: Callable[[Metrics], None], seconds: float = 2.0) -> dict[str, Any]:
    metrics = Metrics()
    metrics.build(version="1.2", base="minilm", device="cpu")
    before = look(metrics, 10.0)
    happens(metrics)
    return snapshot(before, look(metrics, 10.0 + seconds), LastUse())


def test_requests_are_told_by_outcome() -> None:
    def happens(metrics: Metrics) -> None:
        for outcome in ("OK", "OK", "OK", "NOT_FOUND"):
            metrics.request_done("Predict", outcome, TIMINGS, 0.03)
        metrics.request_done("PredictBatch", "OK", TIMINGS, 0.03)
        metrics.refused("queue")

    facts = between(happens)
    assert facts["requests_per_s"] == {"OK": 2.0, "NOT_FOUND": 0.5}
    assert facts["refused_per_s"] == {"queue": 0.5}
    assert facts["server"] == {"version": "1.2", "base": "minilm", "device": "cpu"}


def test_latencies_are_those_of_the_interval_by_stage() -> None:
    metrics = Metrics()
    for _ in range(1000):
        metrics.request_done("Predict", "OK", replace(TIMINGS, queue_s=4.0), 4.0)  # long ago
    before = look(metrics, 0.0)
    for _ in range(100):
        metrics.request_done("Predict", "OK", TIMINGS, 0.03)
    latency = snapshot(before, look(metrics, 1.0), LastUse())["latency_s"]
    assert 0.001 < latency["queue"]["p99"] <= 0.002 and 0.016 < latency["total"]["p50"] <= 0.032
    assert latency["queue"]["per_s"] == 100.0
    assert latency["ready"] == {"per_s": 0.0, "p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize(
    ("buckets", "quantile", "value"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0), (INF, 0.0)], 0.5, None),
        ([(1.0, 0.0), (2.0, 10.0), (INF, 10.0)], 0.5, 1.5),
        ([(1.0, 4.0), (2.0, 4.0), (4.0, 8.0), (INF, 8.0)], 0.75, 3.0),
        ([(1.0, 10.0), (INF, 10.0)], 1.0, 1.0),
        ([(1.0, 1.0), (INF, 10.0)], 0.99, 1.0),  # beyond the last bound nobody knows where
    ],
)
def test_quantiles_are_those_of_prometheus(
    buckets: list[tuple[float, float]], quantile: float, value: float | None
) -> None:
    assert quantile_of(buckets, quantile) == (None if value is None else pytest.approx(value))


def test_batches_tiers_and_tenants() -> None:
    def happens(metrics: Metrics) -> None:
        metrics.batch_done(3, 30, 2, 0.5)
        metrics.batch_done(5, 50, 4, 0.5)
        metrics.tier_bytes(Tier.HOST, 10)
        metrics.tier_budget(Tier.HOST, 100)
        for _ in range(3):
            metrics.cache_hit(Tier.HOST)
        metrics.cache_miss(Tier.HOST)
        metrics.eviction(Tier.HOST, 1.0)
        metrics.load_done(Tier.HOST, 0.1, "ok")
        metrics.tenant_done("acme", 100)
        metrics.tenant_done("beta", 300)
        metrics.tenant_refused("beta")
        metrics.slots(1, 2)
        metrics.in_flight(7)
        metrics.queue_depth(4, 40)

    facts = between(happens)
    assert facts["batches_per_s"] == 1.0
    assert facts["batch_means"] == {"samples": 4.0, "tokens": 40.0, "adapters": 3.0}
    assert facts["device_busy"] == 0.5
    assert facts["tokens_per_s"] == {"answered": 200.0, "computed": 40.0}
    host = facts["tiers"]["host"]
    assert host == {"bytes": 10, "budget_bytes": 100, "adapters": 0, "hit_rate": 0.75} | {
        "loads_per_s": 0.5,
        "evictions_per_s": 0.5,
    }
    assert facts["tiers"]["disk"]["hit_rate"] is None
    assert [(row["tenant"], row["refused_per_s"]) for row in facts["tenants"]] == [("beta", 0.5), ("acme", 0.0)]
    assert facts["slots"] == {"leased": 1, "idle": 2}
    assert (facts["in_flight_requests"], facts["queue_samples"], facts["queue_tokens"]) == (7, 4, 40)


def test_a_server_that_was_started_anew_has_counted_from_0() -> None:
    old, new = Metrics(), Metrics()
    for _ in range(100):
        old.request_done("Predict", "OK", TIMINGS, 0.03)
    for _ in range(5):
        new.request_done("Predict", "OK", TIMINGS, 0.03)
    facts = snapshot(look(old, 0.0), look(new, 1.0), LastUse())
    assert facts["requests_per_s"] == {"OK": 5.0}


def test_without_traffic_there_are_no_numbers_and_json_all_the_same() -> None:
    facts = between(lambda metrics: None)
    assert facts["batch_means"] == {"samples": None, "tokens": None, "adapters": None}
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


class Served:
    """The series of adapters, which a server may have."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("adapter", "outcome")
        self.requests = Counter("adapterd_adapter_requests_total", "", names, registry=self.registry)
        self.tokens = Counter("adapterd_adapter_tokens_total", "", ("adapter",), registry=self.registry)

    def count(self, adapter: str, requests: int) -> None:
        self.requests.labels(adapter, "OK").inc(requests)
        self.tokens.labels(adapter).inc(10 * requests)

    def look(self, at: float) -> Scrape:
        return look(Metrics(), at, generate_latest(self.registry).decode())


def test_adapters_are_ordered_by_rate_and_then_by_last_use() -> None:
    served, last_use = Served(), LastUse()
    for name in ("never", "before", "busy", "_other"):
        served.count(name, 1)
    first = served.look(0.0)
    served.count("before", 5)
    second = served.look(1.0)
    assert snapshot(first, second, last_use)["adapters"][0]["adapter"] == "before"
    served.count("busy", 2)
    served.count("_other", 50)
    rows = snapshot(second, served.look(3.0), last_use)["adapters"]
    assert [row["adapter"] for row in rows] == ["busy", "before", "never", "_other"]
    assert [row["last_used_s_ago"] for row in rows] == [0.0, 2.0, None, 0.0]
    assert (rows[0]["requests_per_s"], rows[0]["tokens_per_s"]) == (1.0, 10.0)


@pytest.mark.parametrize(("text", "says"), [("<html>", "is no metrics"), ("other_total 1\n", "are not adapterd's")])
def test_what_is_not_ours_is_told(text: str, says: str) -> None:
    with pytest.raises(NoAnswer, match=says):
        parsed(text, 0.0, "here:9090")


def test_a_place_is_host_and_port_or_a_url() -> None:
    assert url_of("here:9090") == "http://here:9090/metrics"
    assert url_of("https://here/adapterd/metrics") == "https://here/adapterd/metrics"
