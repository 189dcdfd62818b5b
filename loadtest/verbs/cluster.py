"""Several replicas on one machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "cluster"
EPILOG = "Example: python -m loadtest cluster --output docs/benchmarks/cluster"


def run(
    seconds: Annotated[float, typer.Option(min=0.1, help="of each measurement, after as long a warm-up")] = 10.0,
    adapters: Annotated[int, typer.Option(min=10, help="of which a tenth fits onto one device")] = 400,
    batch_ms: Annotated[list[float] | None, typer.Option(help="that a device takes per batch; repeat it")] = None,
    output: Annotated[Path | None, typer.Option(help="folder for cluster.json, cluster.md and its picture")] = None,
) -> None:
    """1, 2 and 4 replicas with simulated devices: throughput, hit rates by routing, one hot adapter."""
    from loadtest.cluster import BATCH_S, Plan
    from loadtest.cluster import run as measure
    from loadtest.cluster_report import print_report, write_report

    batch_s = tuple(milliseconds / 1000 for milliseconds in batch_ms) if batch_ms else BATCH_S
    report = measure(Plan(seconds, adapters, batch_s=batch_s), shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_report(report)
    if output:
        write_report(output, report)
