"""The report on front processes: a table on the terminal, JSON and Markdown."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.frontends import NUM_ADAPTERS, NUM_WORDS, FrontendsReport, Row

COLUMNS = (
    "form",
    "calls/s",
    "times one process",
    "engine process, µs CPU per call",
    "fronts, µs CPU per call",
    "callers, µs CPU per call",
    "calls/s with a core for each process",
)


def print_frontends(report: FrontendsReport) -> None:
    table = Table(*COLUMNS, title=f"unary Predict, {report.machine['device']}")
    for cells in _cells(report):
        table.add_row(*cells)
    Console().print(table)


def write_frontends(folder: Path, report: FrontendsReport) -> None:
    """frontends.json and frontends.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frontends.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    (folder / "frontends.md").write_text(_markdown(report), encoding="utf-8")


def _markdown(report: FrontendsReport) -> str:
    plan = report.plan
    facts = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    lines = [
        "# What front processes give",
        "",
        f"Machine: {facts}. Cores: {report.num_cores}, shared with the callers.",
        "",
        f"Workload: unary `Predict` over {NUM_ADAPTERS} adapters of a base with one layer of 32 units, so that the"
        f" model is not the limit; texts of {NUM_WORDS + 2} tokens. {plan.num_callers} processes call in a closed loop"
        f" over {plan.num_connections} connections each, {plan.num_in_flight} calls in flight on each. Medians of"
        f" {plan.rounds} rounds of {plan.seconds:g} s in which every form runs in turn; the ratio is the median of the"
        " rounds' own.",
        "",
        "CPU times are those of whole processes, tokenization and the model's pass included. The last column is a"
        " million over the larger of the engine's and one front's CPU time per call: what the slowest process allows"
        " when nothing else wants its core.",
        "",
        f"Command: `{report.command}`",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| --- " * len(COLUMNS) + "|",
        *("| " + " | ".join(cells) + " |" for cells in _cells(report)),
    ]
    return "\n".join([*lines, ""])


def _cells(report: FrontendsReport) -> list[tuple[str, ...]]:
    return [
        (
            f"engine + {row.frontends} front" + "s" * (row.frontends > 1) if row.frontends else "one process",
            f"{statistics.median(row.calls_per_s):,.0f}",
            f"{row.ratio(report.rows[0]):.2f}",
            f"{statistics.median(row.engine_us):.0f}",
            f"{statistics.median(row.fronts_us):.0f}" if row.frontends else "",
            f"{statistics.median(row.callers_us):.0f}",
            f"{_limit(row):,.0f}",
        )
        for row in report.rows
    ]


def _limit(row: Row) -> float:
    """Calls/s at which the busiest process has a whole core's work."""
    front_us = statistics.median(row.fronts_us) / max(1, row.frontends)
    return 1e6 / max(statistics.median(row.engine_us), front_us)
