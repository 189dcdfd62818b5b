"""Replicas on a local Ray, killed under load."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "ray"
EPILOG = "Example: python -m loadtest ray --output docs/benchmarks/cluster"


def run(output: Annotated[Path | None, typer.Option(help="folder for ray.json and ray.md")] = None) -> None:
    """Servers, their Ray workers and what knows them killed: what callers notice, and when all are back."""
    from loadtest.ray import print_report, write
    from loadtest.ray import run as measure

    report = measure(shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_report(report)
    if output:
        write(output, report)
