"""A soak of the cache."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "churn"
EPILOG = "Example: python -m loadtest churn --minutes 20 --output docs/benchmarks/fleet"


def run(
    minutes: Annotated[float, typer.Option(min=0.01, help="how long")] = 20.0,
    adapters: Annotated[int, typer.Option(min=20, help="adapters on the base")] = 200,
    output: Annotated[Path | None, typer.Option(help="folder for churn.json, churn.md and its picture")] = None,
) -> None:
    """Loads, unloads, replacements, splits and pins under load while every tier fails: each answer is compared."""
    from loadtest.churn import Plan
    from loadtest.churn import run as soak
    from loadtest.churn_report import print_report, write_report

    report = soak(Plan(num=adapters, seconds=minutes * 60), shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_report(report)
    if output:
        write_report(output, report)
    if report.seen.wrong:
        raise typer.Exit(1)
