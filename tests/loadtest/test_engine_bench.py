"""The engine benchmark on a tiny base, its arithmetic and its report."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_bases import save_base

from loadtest import workload
from loadtest.engine import Plan, Report, Result, Row, figures, run
from loadtest.engine_report import print_report, write_report
from loadtest.grid import BASE_ONLY, MIXES, PADDED, Axis, Case, Grid, deal
from server.config import ModelConfig
from server.model.base import load_base

CENTRE = Case("distinct", 32, "seq_bn", 64, "log-normal")
TINY = Grid(
    budget=64,
    num_adapters=3,
    mixes=("identical", "distinct"),
    counts=(2, 12),
    methods=("lora",),
    widths=(),
    budgets=(64,),
    length_names=(),
)


def _row(case: Case, seconds: list[float]) -> Row:
    return Row(case, 10, 320, seconds)


def test_ratio_is_of_the_runs_of_one_round() -> None:
    slow, fast = _row(CENTRE.reference, [3.2, 6.4, 1.6]), _row(CENTRE, [1.6, 3.2, 0.4])
    assert fast.ratio(slow) == 2.0
    assert slow.tokens_per_s == 100.0 and slow.samples_per_s == 3.125


def test_ratio_counts_tokens_where_runs_are_unlike() -> None:
    long = Row(CENTRE, 20, 640, [2.0])
    assert long.ratio(_row(CENTRE.reference, [1.0])) == 1.0


def test_every_case_has_its_reference_in_the_same_rounds() -> None:
    for axis in Grid().axes(768):
        assert {case.reference for case in axis.cases} <= set(axis.cases)
        assert len(set(axis.cases)) == len(axis.cases)


@pytest.mark.parametrize("mix", MIXES)
def test_mixes_deal_what_their_names_say(mix: str) -> None:
    dealt = Counter(deal(replace(CENTRE, mix=mix), 320, np.random.default_rng(1)))
    most = dealt.most_common(1)[0][1]
    assert sum(dealt.values()) == 320 and None not in dealt
    expected = {
        "identical": (320, 320),
        "distinct": (10, 10),
        "uniform": (11, 30),
        "zipf": (60, 110),
        "skewed": (260, 310),
    }
    low, high = expected[mix]
    assert low <= most <= high, dealt


def test_the_base_alone_gets_no_adapter() -> None:
    assert deal(CENTRE.reference, 5, np.random.default_rng(0)) == [None] * 5


def test_targets_are_held_against_the_right_rows() -> None:
    cases = [CENTRE.reference, replace(CENTRE, mix="identical"), CENTRE]
    rows = [_row(case, seconds) for case, seconds in zip(cases, ([1.0], [2.0], [4.0]), strict=True)]
    plan = Plan("tiny", Grid(), 1, 64, "cpu", "float32", "")
    report = Report(plan, {}, results=[Result(Axis("adapter mix", "mix", tuple(cases)), rows)])
    assert [(figure.value, figure.is_met) for figure in figures(report)] == [(0.25, False), (0.5, False)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "MAX_LENGTH", 30)  # what the base takes
        base = str(save_base(tmp_path_factory.mktemp("base")))
        return run(Plan(base, TINY, 1, 128, "cpu", "float32", "the command"))


def test_every_case_is_measured(report: Report) -> None:
    assert [result.axis.name for result in report.results] == [
        "adapter mix",
        "resident adapters, zipf",
        "method",
        "tokens per batch",
    ]
    for result in report.results:
        assert [row.case for row in result.rows] == list(result.axis.cases)
        assert all(row.tokens_per_s > 0 and row.num_tokens >= 128 for row in result.rows)
    assert {row.case.mix for row in report.results[-1].rows} == {BASE_ONLY, PADDED, "distinct"}


def test_layers_and_limits_are_measured(report: Report) -> None:
    for shares in report.layers.values():
        for share in shares:
            assert 0 < share.projections < share.layer and share.attention > 0 and share.sites > 0
    assert report.knee is not None and report.knee.budget_tokens in report.knee.rates
    assert report.knee.flops_per_s[0] > 0 and report.knee.bytes_per_s[1] > 0
    assert report.memory is not None and report.memory.num_adapters == 12 - 3  # those that were not there yet


def test_report_holds_every_rate_figure_and_the_command(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path / "new", report)
    saved = json.loads((tmp_path / "new" / "engine.json").read_text())
    assert len(saved["results"]) == len(report.results)
    for text in ((tmp_path / "new" / "engine.md").read_text(), (tmp_path / "new" / "engine.html").read_text()):
        assert "the command" in text
        for figure in report.figures:
            assert figure.name.replace(">", "&gt;") in text and f"{figure.value:.2f}" in text
    pictures = list((tmp_path / "new").glob("*.png"))
    assert len(pictures) == 3 and all(picture.stat().st_size > 1000 for picture in pictures)
    print_report(report)
    assert "distinct / identical adapters" in capsys.readouterr().out


def test_clocks_leave_the_base_as_it_was(tmp_path: Path) -> None:
    from loadtest.layers import LayerClock

    base = load_base(ModelConfig(base=str(save_base(tmp_path))))
    with LayerClock(base):
        assert any(module._forward_hooks for module in base.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.model.modules())


@pytest.mark.parametrize("cost", [workload.packed_cost, workload.padded_cost])
def test_batches_keep_the_order_and_the_budget(cost: object) -> None:
    assert callable(cost)
    texts = workload.encodings(2000, vocab_size=1000, seed=1)
    batches = list(workload.batches(texts, 300, cost))
    assert [text for batch in batches for text in batch] == texts
    assert all(cost(batch) <= 300 or len(batch) == 1 for batch in batches)
    assert workload.encodings(2000, vocab_size=1000, seed=1) == texts
