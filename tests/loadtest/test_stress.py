"""Overload, fairness, the soak and faults, for a few seconds each, on a tiny base."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from loadtest import chaos, fairness, overload, soak
from loadtest.arrivals import Schedule
from loadtest.client import Outcomes
from loadtest.crowd import REFUSED, got
from loadtest.overload import REFUSALS, OverloadReport, Row, edge_of
from loadtest.soak import Sample, Seen, SoakReport
from loadtest.stress_report import print_figures, write_chaos, write_fairness, write_overload, write_soak

BASE = "minilm"  # a device so fast as that of a tiny one could not be overloaded from one process


def written(folder: Path, name: str) -> str:
    figures = json.loads((folder / f"{name}.json").read_text())["figures"]
    text = (folder / f"{name}.md").read_text()
    assert figures and all(figure["name"] in text for figure in figures)
    return text


def test_overload_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = overload.run(overload.Plan(BASE, seconds=1.0, warm_up_s=0.3), "command")
    print_figures(report)
    write_overload(tmp_path, report)
    assert [row.factor for row in report.rows] == [1, 2, 5, 10] and report.saturated_per_s > 0
    assert report.rows[0].answered_per_s > 0 and all(row.memory_mib > 50 for row in report.rows)
    assert "goodput" in capsys.readouterr().out and "10x" in written(tmp_path, "overload")
    assert (tmp_path / "overload.png").exists()


def test_what_overload_asks_for_is_held_against_the_rated_load() -> None:
    def row(factor: int, **changes: float) -> Row:
        facts: dict[str, float] = {"answered_per_s": 100, "p99_s": 1.0, "refusal_p99_s": 0.001, "memory_mib": 100}
        return Row(factor, 0, p50_s=0.5, num_refused=1, num_failed=0, **(facts | changes))  # type: ignore[arg-type]

    rows = [row(1), row(2, answered_per_s=90), row(10, p99_s=1.6, memory_mib=151, refusal_p99_s=0.02)]
    figures = OverloadReport({}, "", overload.Plan(), 100.0, rows).figures
    assert [figure.is_met for figure in figures] == [False, False, False, False, True]
    assert all(figure.is_met for figure in OverloadReport({}, "", overload.Plan(), 100.0, [row(1), row(10)]).figures)


def test_the_edge_of_a_quantile_is_of_what_came_between() -> None:
    def series(*counts: int) -> dict[str, float]:
        edges = ("0.001", "0.002", "+Inf")
        return {f'{REFUSALS}_bucket{{le="{edge}"}}': count for edge, count in zip(edges, counts, strict=True)}

    assert edge_of(series(10, 10, 10), series(10, 109, 110), 0.99) == 0.002
    assert edge_of(series(0, 0, 0), series(50, 98, 100), 0.99) == math.inf
    assert edge_of(series(5, 5, 5), series(5, 5, 5), 0.99) == 0


@pytest.mark.slow  # five servers; what it shares with overload runs above
def test_fairness_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = fairness.run(fairness.Plan(BASE, seconds=1.0, warm_up_s=0.3, window_s=1.0, rounds=1, noise=4.0), "command")
    print_figures(report)
    write_fairness(tmp_path, report)
    assert [row.name for row in report.divided] == ["equal weights", "weights 1 and 3"]
    assert all(rate > 0 for row in report.divided for rate in row.tokens_per_s.values())
    assert report.fifo_tokens_per_s > 0 and "equal weights" in capsys.readouterr().out
    assert [row.share for row in report.beside] == [fairness.BUSY, fairness.LIGHT]
    assert "90% of its share" in written(tmp_path, "fairness")


def test_what_one_tenant_got_is_counted_where_it_belongs() -> None:
    at, done = np.array([0.5, 1.5, 1.6, 2.5, 1.7]), np.array([1.2, 1.9, 1.7, 2.6, 2.2])
    schedule = Schedule(("a", "b"), at, np.zeros(5, int), np.zeros(5, int), np.array([0, 0, 0, 0, 1]))
    codes = np.array([0, 0, REFUSED, 0, 0])
    outcomes = Outcomes(schedule, at, done, codes, np.full(5, 7), np.zeros((5, 5)), np.zeros((5, 4), int))
    own = got(outcomes, 1.0, 2.0, 0)
    assert (own.answered_per_s, own.tokens, own.num_refused, own.num_failed) == (2, 14, 1, 0)
    assert own.latency_s.tolist() == pytest.approx([0.4]) and own.quantile(0.5) == pytest.approx(0.4)
    assert got(outcomes, 1.0, 2.0).offered_per_s == 3 and got(outcomes, 5.0, 6.0).quantile(0.9) == math.inf


def test_the_soak_compares_answers_and_watches_the_process(tmp_path: Path) -> None:
    report = soak.run(soak.Plan(seconds=5.0), "command")
    print_figures(report)
    write_soak(tmp_path, report)
    assert report.seen.answers > 50 and report.seen.wrong == 0 and not report.seen.errors
    assert report.seen.cancelled > 0 and report.seen.done["client killed"] > 0
    assert "memory in use after the warm-up" in written(tmp_path, "soak")


def test_memory_and_descriptors_that_grow_are_told() -> None:
    samples = [Sample(float(at), 100 + at / 180, at / 360, 10 + at // 100, 5) for at in range(0, 1000, 5)]
    report = SoakReport({}, "", soak.Plan(1000.0), Seen(samples=samples))
    assert report.slope_mb_per_h == pytest.approx(10 * 1.048576, rel=0.01)
    assert report.growth("num_descriptors") in (6, 7) and report.growth("num_threads") == 0
    assert [figure.is_met for figure in report.figures] == [True, True, False, False, True]


@pytest.mark.parametrize("fault", ["front killed", "SIGTERM"])
def test_a_fault_is_made_and_what_it_costs_is_told(fault: str, tmp_path: Path) -> None:
    report = chaos.run(chaos.Plan((fault,)), "command")
    print_figures(report)
    write_chaos(tmp_path, report)
    [row] = report.rows
    assert row.is_kept and row.num_answered > 0 and row.recovered_s < 30
    assert fault in written(tmp_path, "chaos")


def test_an_unknown_fault_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(SystemExit, match="known: engine killed"):
        chaos.run(chaos.Plan(("meteor",)), "command")
