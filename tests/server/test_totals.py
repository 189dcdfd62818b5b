from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.core import Timings
from server.metrics import Metrics
from server.totals import Totals, snapshot


def value(totals: Totals, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(generate_latest(totals.registry).decode())
    [found] = [
        s.value for family in families for s in family.samples if (s.name, s.labels) == (f"adapterd_{name}", labels)
    ]
    return found


def front(num_requests: int) -> Metrics:
    metrics = Metrics()
    for _ in range(num_requests):
        metrics.request_done("Predict", "OK", Timings(queue_s=0.003), 0.01)
    metrics.in_flight(num_requests)
    return metrics


def test_counters_histograms_and_gauges_of_all_processes_add_up() -> None:
    own = front(1)
    totals = Totals(own)
    totals.put(0, snapshot(front(2)))
    totals.put(1, snapshot(front(3)))
    totals.put(1, snapshot(front(4)))  # replaces what it told before
    assert value(totals, "requests_total", method="Predict", outcome="OK") == 7
    assert value(totals, "request_duration_seconds_count", stage="queue") == 7
    assert value(totals, "request_duration_seconds_bucket", stage="queue", le="0.004") == 7
    assert value(totals, "request_duration_seconds_bucket", stage="queue", le="0.002") == 0
    assert value(totals, "in_flight_requests") == 7


def test_labels_that_only_another_process_has_are_shown() -> None:
    totals = Totals(Metrics())
    totals.put(0, snapshot(front(2)))
    assert value(totals, "requests_total", method="Predict", outcome="OK") == 2


def test_what_a_process_counted_outlives_it_and_what_it_held_does_not() -> None:
    totals = Totals(Metrics())
    totals.put(0, snapshot(front(2)))
    totals.retire(0)
    totals.put(0, snapshot(front(1)))
    assert value(totals, "requests_total", method="Predict", outcome="OK") == 3
    assert value(totals, "in_flight_requests") == 1


def test_alone_it_shows_what_the_metrics_show() -> None:
    own = front(2)
    own.build(version="1")
    assert generate_latest(Totals(own).registry) == own.render()
