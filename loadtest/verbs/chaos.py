"""One fault after the other, under load."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "chaos"
EPILOG = "Example: python -m loadtest chaos --output docs/benchmarks/stress"


def run(
    fault: Annotated[list[str] | None, typer.Option(help="one of them only; may be repeated")] = None,
    output: Annotated[Path | None, typer.Option(help="folder for chaos.json, chaos.md and its picture")] = None,
) -> None:
    """Processes killed, disks full and stalled, origins down: what callers see, and how long it takes."""
    from loadtest.chaos import Plan
    from loadtest.chaos import run as measure
    from loadtest.stress_report import print_figures, write_chaos

    report = measure(Plan(tuple(fault or ())), shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_figures(report)
    if output:
        write_chaos(output, report)
