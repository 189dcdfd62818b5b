"""What a run is summed up to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from queue_model import answered

from loadtest.arrivals import Catalog, Schedule, Traffic, schedule
from loadtest.client import STAGES, Outcomes
from loadtest.latency import WIRE, Objective, batch_adapters, quantiles, summarize

OBJECTIVE = Objective(0.05)


def requests(num: int = 1000, *traffics: Traffic) -> Schedule:
    return schedule(traffics or [Traffic()], num / 10, 10.0, Catalog(8, 0, 1), seed=3)


def constant(num: int, latency_s: float) -> Outcomes:
    whole = answered(requests(num))
    return replace(whole, done_s=whole.schedule.at_s + latency_s, code=np.zeros(num, dtype=np.int64))


def test_percentiles_are_values_that_were_seen() -> None:
    found = quantiles(np.arange(1.0, 1001.0))
    assert found == {"p50": 500.0, "p90": 900.0, "p95": 950.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}
    assert quantiles(np.array([7.0]))["p99"] == 7.0 and quantiles(np.array([]))["max"] == 0.0


def test_requests_without_an_answer_count_as_endless() -> None:
    outcomes = constant(1000, 0.01)
    outcomes.code[:11] = 8
    row = summarize("run", outcomes, 10.0, OBJECTIVE)
    assert row.latency_s["p99"] == float("inf") and row.latency_s["p95"] == pytest.approx(0.01)
    assert row.errors == {"RESOURCE_EXHAUSTED": 11} and not row.holds(OBJECTIVE)
    assert row.goodput_per_s == pytest.approx(98.9, rel=0.01)


def test_answers_beyond_the_objective_are_throughput_and_no_goodput() -> None:
    row = summarize("run", constant(1000, 0.06), 10.0, OBJECTIVE)
    assert row.answered_per_s == pytest.approx(100, rel=0.01) and row.goodput_per_s == 0 and not row.errors
    assert summarize("run", constant(1000, 0.04), 10.0, OBJECTIVE).holds(OBJECTIVE)


def test_a_generator_that_sent_late_proves_nothing() -> None:
    objective = Objective(1.0)
    on_time = summarize("run", answered(requests(), lag_s=0.19), 10.0, objective)
    late = summarize("run", answered(requests(), lag_s=0.21), 10.0, objective)
    assert on_time.holds(objective) and late.latency_s["p99"] < 1.0
    assert late.is_generator_limited and not late.holds(objective) and late.lag_p99_s == pytest.approx(0.21)


def test_stages_add_up_to_the_mean_latency() -> None:
    outcomes = answered(requests(), lag_s=0.003)
    row = summarize("run", outcomes, 10.0, OBJECTIVE)
    assert sum(row.stages_s.values()) == pytest.approx(float(outcomes.latency_s.mean()))
    assert row.stages_s[WIRE] == pytest.approx(0.003) and set(row.stages_s) == {*STAGES, WIRE}


def test_batches_count_once_each_however_many_requests_rode_in_them() -> None:
    outcomes = answered(requests(4000))
    row = summarize("run", outcomes, 10.0, OBJECTIVE)
    num_passes = len(np.unique(outcomes.batch[:, 0]))
    assert row.batch["samples"] == pytest.approx(4000 / num_passes)
    assert len(batch_adapters(outcomes)) == num_passes and batch_adapters(outcomes).max() <= 8


def test_tenants_are_told_apart() -> None:
    whole = requests(1000, Traffic("quick"), Traffic("slow"))
    outcomes = replace(answered(whole), done_s=whole.at_s + np.where(whole.tenant == 0, 0.01, 0.5))
    tenants = summarize("run", outcomes, 10.0, OBJECTIVE).tenants
    assert tenants["quick"]["max"] == pytest.approx(0.01) and tenants["slow"]["p50"] == pytest.approx(0.5)
