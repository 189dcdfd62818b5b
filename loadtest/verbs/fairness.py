"""Tenants that want more than there is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "fairness"
EPILOG = "Example: python -m loadtest fairness --output docs/benchmarks/stress"


def run(
    base: Annotated[str, typer.Option(help="bert-base (random weights), minilm, or a directory")] = "bert-base",
    seconds: Annotated[float, typer.Option(min=1, help="measured of each run")] = 30.0,
    warm_up: Annotated[float, typer.Option(min=0, help="seconds before that, of each run")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="of the quiet tenant beside a calm and a noisy one")] = 3,
    frontends: Annotated[int, typer.Option(min=0, help="front processes; 0: callers talk to the engine's")] = 0,
    output: Annotated[Path | None, typer.Option(help="folder for fairness.json, fairness.md and its picture")] = None,
) -> None:
    """Tokens of backlogged tenants against their weights, and what a quiet one feels of a noisy one."""
    from loadtest.fairness import Plan
    from loadtest.fairness import run as measure
    from loadtest.stress_report import print_figures, write_fairness

    report = measure(
        Plan(base, seconds, warm_up, min(10.0, seconds), rounds, frontends=frontends),
        shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]),
    )
    print_figures(report)
    if output:
        write_fairness(output, report)
