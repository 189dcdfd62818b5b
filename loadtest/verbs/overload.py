"""More requests than a server can answer."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "overload"
EPILOG = "Example: python -m loadtest overload --output docs/benchmarks/stress"


def run(
    base: Annotated[str, typer.Option(help="bert-base (random weights), minilm, or a directory")] = "bert-base",
    seconds: Annotated[float, typer.Option(min=1, help="measured at each load")] = 40.0,
    warm_up: Annotated[float, typer.Option(min=0, help="seconds before that, at each load")] = 15.0,
    frontends: Annotated[int, typer.Option(min=0, help="front processes; 0: callers talk to the engine's")] = 0,
    output: Annotated[Path | None, typer.Option(help="folder for overload.json, overload.md and its picture")] = None,
) -> None:
    """One to ten times the rated load: goodput, latency of the accepted, time of a refusal, memory."""
    from loadtest.overload import Plan
    from loadtest.overload import run as measure
    from loadtest.stress_report import print_figures, write_overload

    report = measure(Plan(base, seconds, warm_up, frontends), shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_figures(report)
    if output:
        write_overload(output, report)
