"""A scrape after many adapters."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "scrape"
EPILOG = "Example: python -m loadtest scrape --output docs/benchmarks/stress"


def run(
    adapters: Annotated[int, typer.Option(min=1, help="that are asked for, each once")] = 10_000,
    output: Annotated[Path | None, typer.Option(help="folder for scrape.json and scrape.md")] = None,
) -> None:
    """Size and time of a scrape after 10,000 adapters have come and gone; takes some minutes."""
    from loadtest.scrape import Plan
    from loadtest.scrape import run as measure
    from loadtest.scrape_report import print_scrape, write_scrape

    report = measure(Plan(adapters), shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_scrape(report)
    if output:
        write_scrape(output, report)
