from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.scrape import FORMATS, Plan, Row, ScrapeReport, run
from loadtest.scrape_report import print_scrape, write_scrape


def test_scrapes_before_and_after_are_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(Plan(num_adapters=24), "command")
    print_scrape(report)
    write_scrape(tmp_path, report)
    assert [(row.num_asked, row.format) for row in report.rows] == [(num, form) for num in (0, 24) for form in FORMATS]
    assert all(row.num_series > 100 and 0 < row.median_ms <= row.slowest_ms for row in report.rows)
    assert "after 24 adapters" in capsys.readouterr().out
    figures = json.loads((tmp_path / "scrape.json").read_text())["figures"]
    assert all(figure["name"] in (tmp_path / "scrape.md").read_text() for figure in figures)


def test_the_larger_and_the_slower_format_count() -> None:
    row = Row(10, "text", 100.0, 1000, 20.0, 30.0)
    rows = [replace(row, num_asked=0, size_kb=900.0), row, replace(row, size_kb=257.0), replace(row, median_ms=49.0)]
    figures = ScrapeReport({}, "", Plan(10), rows).figures
    assert [(figure.value, figure.is_met) for figure in figures] == [(257.0, False), (49.0, True)]
