"""The figures of several reports in one table, beside their targets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.figures import Figure


def collected(paths: Iterable[Path]) -> list[tuple[str, Figure]]:
    """Each figure with the report and base it is from: JSON files, or folders with such files anywhere below.

    raises ValueError where there is none
    """
    paths = list(paths)
    files = [file for path in paths for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    found = [found for file in files for found in _figures(file)]
    if not found:
        raise ValueError(f"no report with figures in {', '.join(map(str, paths))}; run a benchmark with --output first")
    return found


def _figures(file: Path) -> list[tuple[str, Figure]]:
    report: Any = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(report, dict):
        return []
    base = report.get("plan", report).get("base", "")
    source = f"{file.stem}, {base}" if base else file.stem
    return [(source, Figure(**figure)) for figure in report.get("figures", [])]


def print_targets(figures: Iterable[tuple[str, Figure]]) -> None:
    table = Table("figure", "measured", "target", "", "from", title="Targets")
    for source, figure in figures:
        style = "" if figure.is_met else "bold"
        table.add_row(
            figure.name, f"{figure.value:.2f}", figure.target, "" if figure.is_met else "missed", source, style=style
        )
    Console().print(table)
