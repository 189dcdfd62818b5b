"""Calls/s with front processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "frontends"
EPILOG = "Example: python -m loadtest frontends --frontends 1 --frontends 2"


def run(
    frontends: Annotated[list[int] | None, typer.Option(help="numbers of front processes; may be repeated")] = None,
    callers: Annotated[int, typer.Option(help="processes that call")] = 2,
    connections: Annotated[int, typer.Option(help="of each of them")] = 8,
    in_flight: Annotated[int, typer.Option(help="calls on each connection")] = 8,
    seconds: Annotated[float, typer.Option(help="of one round")] = 3.0,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 5,
    output: Annotated[Path | None, typer.Option(help="folder for frontends.json and frontends.md")] = None,
) -> None:
    """Calls/s and CPU time per call of one process, and of front processes before an engine process."""
    from loadtest.frontends import Plan
    from loadtest.frontends import run as measure
    from loadtest.frontends_report import print_frontends, write_frontends

    report = measure(Plan(tuple(frontends or (1, 2)), callers, connections, in_flight, seconds, rounds))
    print_frontends(report)
    if output:
        write_frontends(output, report)
