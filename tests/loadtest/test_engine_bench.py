"""The engine benchmark on a tiny base, and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_bases import save_base

from loadtest import workload
from loadtest.engine import BASE_ONLY, DISTINCT, ONE, PADDED, EngineBench, Plan, Report, Row
from loadtest.report import CONTENDERS, print_table, write_report

RATES = {PADDED: 100.0, BASE_ONLY: 200.0, ONE: 196.0, DISTINCT: 180.0}
PLAN = Plan(bases=("tiny",), budgets=(64,), num_adapters=3, rounds=1, device="cpu", dtype="float32")


def test_ratio_is_of_the_two_rates() -> None:
    row = Row("tiny", 64, 10, 320, RATES)
    assert row.ratio(BASE_ONLY, PADDED) == 2.0 and row.ratio(DISTINCT, BASE_ONLY) == 0.9


def test_report_holds_every_rate_ratio_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(PLAN, {"device": "a CPU", "dtype": "float32"}, "the command", [Row("tiny", 64, 10, 320, RATES)])
    write_report(tmp_path / "new", report)
    [row] = json.loads((tmp_path / "new" / "engine.json").read_text())["rows"]
    assert row["tokens_per_s"] == RATES
    text = (tmp_path / "new" / "engine.md").read_text()
    assert "| tiny | 64 | 100 | 200 | 196 | 180 | 2.00 (>= 1.5) | 0.90 (>= 0.95) |" in text and "`the command`" in text
    assert (tmp_path / "new" / "engine.png").stat().st_size > 1000
    print_table(report)
    assert "a CPU" in capsys.readouterr().out


def test_every_contender_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "MAX_LENGTH", 30)  # what the base takes
    monkeypatch.setattr("loadtest.engine.MIN_TOKENS", 256)
    base = str(save_base(tmp_path))
    plan = Plan(bases=(base,), budgets=(64,), num_adapters=3, rounds=1, device="cpu", dtype="float32")
    [row] = EngineBench(plan).run().rows
    assert row.tokens_per_s.keys() == set(CONTENDERS) and all(rate > 0 for rate in row.tokens_per_s.values())
    assert row.num_tokens >= 256 and row.budget == 64


@pytest.mark.parametrize("cost", [workload.packed_cost, workload.padded_cost])
def test_batches_keep_the_order_and_the_budget(cost: object) -> None:
    assert callable(cost)
    texts = workload.encodings(2000, vocab_size=1000, seed=1)
    batches = list(workload.batches(texts, 300, cost))
    assert [text for batch in batches for text in batch] == texts
    assert all(cost(batch) <= 300 or len(batch) == 1 for batch in batches)
    assert workload.encodings(2000, vocab_size=1000, seed=1) == texts
