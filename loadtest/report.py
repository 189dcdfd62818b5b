"""The report on methods: a table on the terminal, JSON and Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.methods import MethodsReport


def print_figures(report: MethodsReport) -> None:
    """Each ratio beside its target."""
    table = Table("ratio", "measured", "target", title=f"{report.num_tokens} tokens, {report.machine['device']}")
    for figure in report.figures:
        table.add_row(figure.name, f"{figure.value:.2f}", figure.target + ("" if figure.is_met else "  missed"))
    Console().print(table)


def write_figures(folder: Path, report: MethodsReport) -> None:
    """methods.json and methods.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "methods.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    lines = [
        "# What methods cost",
        "",
        f"Machine: {machine}. Batches of {report.num_tokens} tokens, texts of log-normal length. Ratios of seconds in"
        " one run, every contender in turn, medians. Command: `python -m loadtest methods`.",
        "",
        "| ratio | measured | target |",
        "| --- | --- | --- |",
        *(f"| {figure.name} | {figure.value:.2f} | {figure.target} |" for figure in report.figures),
    ]
    (folder / "methods.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
