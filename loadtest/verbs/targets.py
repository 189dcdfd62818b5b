"""The figures of several reports in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "targets"
EPILOG = "Example: python -m loadtest targets docs/benchmarks/bert-base"


def run(
    reports: Annotated[list[Path], typer.Argument(help="reports in JSON, or folders with reports")],
) -> None:
    """The figures of reports that were written with --output, beside their targets, in one table."""
    from loadtest.targets import collected, print_targets

    try:
        print_targets(collected(reports))
    except (OSError, ValueError) as error:
        typer.echo(f"loadtest: {error}", err=True)
        raise typer.Exit(1) from error
