"""A thousand replicas and a million adapters."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "scale"
EPILOG = "Example: python -m loadtest scale --output docs/benchmarks/cluster"


def run(
    replicas: Annotated[list[int] | None, typer.Option(min=2, help="sizes of a cluster; repeat it")] = None,
    adapters: Annotated[int, typer.Option(min=1000, help="in all")] = 1_000_000,
    room: Annotated[int, typer.Option(min=10, help="adapters that fit onto one replica")] = 5_000,
    requests: Annotated[int, typer.Option(min=1000, help="that fill caches, and as many that are counted")] = 1_000_000,
    batches: Annotated[int, typer.Option(min=10, help="of each device, not counted, and as many that are")] = 1000,
    output: Annotated[Path | None, typer.Option(help="folder for scale.json and scale.md")] = None,
) -> None:
    """Routing, caches and publishing of up to 1,000 replicas and a million adapters; takes some 20 minutes."""
    from loadtest.scale import COUNTS, Plan
    from loadtest.scale import run as simulate
    from loadtest.scale_report import print_report, write_report

    plan = Plan(tuple(replicas) if replicas else COUNTS, adapters, requests, room, batches)
    report = simulate(plan, shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_report(report)
    if output:
        write_report(output, report)
