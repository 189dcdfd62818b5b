"""A real server for a long time."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "soak"
EPILOG = "Example: python -m loadtest soak --output docs/benchmarks/stress"


def run(
    minutes: Annotated[float, typer.Option(min=0.1, help="how long")] = 20.0,
    output: Annotated[Path | None, typer.Option(help="folder for soak.json, soak.md and its picture")] = None,
) -> None:
    """Cancelled calls, killed clients, adapters that come and go: memory, descriptors and threads stay flat."""
    from loadtest.soak import Plan
    from loadtest.soak import run as measure
    from loadtest.stress_report import print_figures, write_soak

    report = measure(Plan(minutes * 60), shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_figures(report)
    if output:
        write_soak(output, report)
    if report.seen.wrong:
        raise typer.Exit(1)
