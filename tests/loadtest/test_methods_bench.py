"""The benchmark of methods on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_bases import save_base

from loadtest import methods, workload
from loadtest.report import print_figures, write_figures


def test_every_figure_is_measured_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workload, "MAX_LENGTH", 30)  # what the base takes
    monkeypatch.setattr(methods, "METHODS", ("seq_bn", "lora", "dora", "prefix_tuning", "loreft"))
    monkeypatch.setattr(methods, "NUM_PARALLEL", 3)
    report = methods.run(str(save_base(tmp_path)), budget=200, rounds=1, device="cpu", dtype="float32")
    assert [figure.target for figure in report.figures] == ["<= 2.5", "<= 0.5", "<= 1.02"]
    assert all(figure.value > 0 for figure in report.figures) and report.num_tokens >= 200
    print_figures(report)
    write_figures(tmp_path / "out", report)
    assert "measured" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "methods.json").read_text())["figures"]) == 3
    assert "| ratio | measured | target |" in (tmp_path / "out" / "methods.md").read_text()
