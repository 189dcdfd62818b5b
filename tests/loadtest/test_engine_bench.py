"""The engine benchmark on a tiny base, and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_bases import save_base

from loadtest import workload
from loadtest.engine import BASE_ONLY, DISTINCT, ONE, PADDED, EngineBench, Plan, Report, Row
from loadtest.report import CONTENDERS, print_table, write_report

SECONDS = {PADDED: [3.2, 6.4, 1.6], BASE_ONLY: [1.6, 3.2, 0.4], ONE: [1.6, 1.6, 1.6], DISTINCT: [2.0, 4.0, 0.4]}
PLAN = Plan(bases=("tiny",), budgets=(64,), num_adapters=3, rounds=1, device="cpu", dtype="float32")


def test_ratio_is_of_the_runs_of_one_round() -> None:
    row = Row("tiny", 64, 10, 320, SECONDS)
    assert row.ratio(BASE_ONLY, PADDED) == 2.0 and row.ratio(DISTINCT, BASE_ONLY) == 0.8
    assert row.tokens_per_s(PADDED) == 100.0


def test_report_holds_every_rate_ratio_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(PLAN, {"device": "a CPU", "dtype": "float32"}, "the command", [Row("tiny", 64, 10, 320, SECONDS)])
    write_report(tmp_path / "new", report)
    [row] = json.loads((tmp_path / "new" / "engine.json").read_text())["rows"]
    assert row["seconds"] == SECONDS
    text = (tmp_path / "new" / "engine.md").read_text()
    assert "| tiny | 64 | 100 | 200 | 200 | 160 | 2.00 (>= 1.5) | 0.80 (>= 0.95) |" in text and "`the command`" in text
    assert (tmp_path / "new" / "engine.png").stat().st_size > 1000
    print_table(report)
    assert "a CPU" in capsys.readouterr().out


def test_every_contender_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "MAX_LENGTH", 30)  # what the base takes
    monkeypatch.setattr("loadtest.engine.MIN_TOKENS", 256)
    base = str(save_base(tmp_path))
    plan = Plan(bases=(base,), budgets=(64,), num_adapters=3, rounds=1, device="cpu", dtype="float32")
    [row] = EngineBench(plan).run().rows
    assert row.seconds.keys() == set(CONTENDERS) and all(row.tokens_per_s(name) > 0 for name in CONTENDERS)
    assert row.num_tokens >= 256 and row.budget == 64


@pytest.mark.parametrize("cost", [workload.packed_cost, workload.padded_cost])
def test_batches_keep_the_order_and_the_budget(cost: object) -> None:
    assert callable(cost)
    texts = workload.encodings(2000, vocab_size=1000, seed=1)
    batches = list(workload.batches(texts, 300, cost))
    assert [text for batch in batches for text in batch] == texts
    assert all(cost(batch) <= 300 or len(batch) == 1 for batch in batches)
    assert workload.encodings(2000, vocab_size=1000, seed=1) == texts
