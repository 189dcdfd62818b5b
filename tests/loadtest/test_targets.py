"""One table of the figures of several reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.figures import at_least, at_most
from loadtest.html import write_json
from loadtest.targets import collected, print_targets


def test_figures_of_all_reports_below_a_folder_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "a" / "engine.json", {"figures": [at_least("fast", 0.5, 0.9)], "rows": []})
    write_json(tmp_path / "serve.json", {"figures": [at_most("small", 1.0, 1.1)]})
    write_json(tmp_path / "other.json", ["no report"])
    found = collected([tmp_path])
    assert [(source, figure.name, figure.is_met) for source, figure in found] == [
        ("engine", "fast", False),
        ("serve", "small", True),
    ]
    print_targets(found)
    shown = capsys.readouterr().out
    assert ">= 0.9" in shown and shown.count("missed") == 1


def test_no_report_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run a benchmark with --output first"):
        collected([tmp_path])
