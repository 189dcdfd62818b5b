"""The soak, for a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters_cache import origin
from loadtest import churn
from loadtest.churn import ChurnReport, Plan, Seen
from loadtest.churn_report import print_report, write_report


def test_no_answer_is_wrong_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(origin, "read_checkpoint", origin.read_checkpoint)  # put back what the soak replaces
    report = churn.run(Plan(num=24, seconds=5.0), "command")
    print_report(report)
    write_report(tmp_path, report)
    assert report.seen.answers > 100 and report.seen.wrong == 0 and report.left_bytes == 0
    assert not report.seen.unexpected and report.seen.errors["NON_FINITE"] > 0
    assert {"load", "unload", "replace"} & set(report.seen.done) and report.seen.memory_mib
    assert "a wrong digest answered" in capsys.readouterr().out and (tmp_path / "churn.png").exists()
    assert json.loads((tmp_path / "churn.json").read_text())["left_bytes"] == 0


def test_memory_that_grows_is_told() -> None:
    def drift(*mib: float) -> float:
        seen = Seen(memory_mib=[(float(at), value) for at, value in enumerate(mib)])
        return ChurnReport({}, "", Plan(seconds=len(mib)), seen, 0).drift

    assert drift(*[100.0] * 40) == 0
    assert drift(*[50.0] * 10, *[100.0] * 30) == 0  # the warm-up does not count
    assert drift(*[100.0 + at for at in range(40)]) > 0.2
