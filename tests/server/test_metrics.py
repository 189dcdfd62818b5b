from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from server.core import Tier, Timings
from server.metrics import LATENCY_BUCKETS_S, Metrics


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return series(metrics)[f"adapterd_{name}", tuple(sorted(labels.items()))]


def test_instances_do_not_share_series() -> None:
    first, second = Metrics(), Metrics()
    first.cancelled()
    assert value(first, "cancelled_total") == 1
    assert value(second, "cancelled_total") == 0


def test_request_counts_by_method_and_outcome() -> None:
    metrics = Metrics()
    for outcome in ("OK", "OK", "NOT_FOUND"):
        metrics.request_done("Predict", outcome, Timings(), 0.01)
    assert value(metrics, "requests_total", method="Predict", outcome="OK") == 2
    assert value(metrics, "requests_total", method="Predict", outcome="NOT_FOUND") == 1


def test_stages_a_request_never_reached_are_not_observed() -> None:
    metrics = Metrics()
    metrics.request_done("Predict", "INVALID_ARGUMENT", Timings(admit_s=0.001), 0.002)
    assert value(metrics, "request_duration_seconds_count", stage="admit") == 1
    assert value(metrics, "request_duration_seconds_count", stage="compute") == 0
    assert value(metrics, "request_duration_seconds_sum", stage="total") == 0.002


def test_batch_adds_its_compute_time() -> None:
    metrics = Metrics()
    metrics.batch_done(3, 40, 2, 0.5)
    metrics.batch_done(1, 10, 0, 0.25)
    assert value(metrics, "compute_seconds_total") == 0.75
    assert value(metrics, "batch_tokens_sum") == 50
    assert value(metrics, "batch_adapters_bucket", le="0.0") == 1


def test_tiers_are_kept_apart() -> None:
    metrics = Metrics()
    metrics.cache_hit(Tier.HOST)
    metrics.cache_miss(Tier.DEVICE)
    metrics.load_done(Tier.DEVICE, 0.002, "ok")
    metrics.eviction(Tier.DEVICE, 12.0)
    metrics.tier_bytes(Tier.HOST, 100)
    metrics.tier_budget(Tier.HOST, 1000)
    metrics.tier_adapters(Tier.HOST, 4)
    assert value(metrics, "hits_total", tier="host") == 1
    assert value(metrics, "hits_total", tier="device") == 0
    assert value(metrics, "misses_total", tier="device") == 1
    assert value(metrics, "loads_total", tier="device", outcome="ok") == 1
    assert value(metrics, "evictions_total", tier="device") == 1
    assert value(metrics, "eviction_age_seconds_sum", tier="device") == 12.0
    assert value(metrics, "tier_bytes", tier="host") == 100
    assert value(metrics, "tier_budget_bytes", tier="host") == 1000
    assert value(metrics, "tier_adapters", tier="host") == 4


def test_gauges_show_the_last_value() -> None:
    metrics = Metrics()
    metrics.queue_depth(5, 60)
    metrics.queue_depth(0, 0)
    metrics.in_flight(7)
    metrics.slots(leased=2, idle=3)
    assert value(metrics, "queue_samples") == 0
    assert value(metrics, "queue_tokens") == 0
    assert value(metrics, "in_flight_requests") == 7
    assert value(metrics, "slots", state="idle") == 3


def test_expired_work_is_counted_by_stage() -> None:
    metrics = Metrics()
    metrics.expired("queue")
    assert value(metrics, "expired_total", stage="queue") == 1
    assert value(metrics, "expired_total", stage="admit") == 0


def test_no_label_is_open_ended() -> None:
    names = {name for _, labels in series(Metrics()) for name, _ in labels}
    assert names <= {"method", "outcome", "stage", "tier", "state", "reason", "what", "le", "adapter"}  # see test_usage


def test_latency_buckets_double_from_a_quarter_millisecond() -> None:
    assert LATENCY_BUCKETS_S[0] == 0.00025
    assert LATENCY_BUCKETS_S[-1] == 8.192


def test_build_facts_are_rendered() -> None:
    metrics = Metrics()
    metrics.build(version="1.2", device="cpu")
    assert value(metrics, "build_info", version="1.2", device="cpu") == 1
