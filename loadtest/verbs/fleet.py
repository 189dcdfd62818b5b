"""Thousands of adapters on one base."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "fleet"
EPILOG = "Examples: python -m loadtest fleet --quick; python -m loadtest fleet --output docs/benchmarks/fleet"


def run(
    adapters: Annotated[int, typer.Option(min=100, help="adapters on the base")] = 10_000,
    host: Annotated[int, typer.Option(min=10, help="how many host memory has room for")] = 2_000,
    device: Annotated[int, typer.Option(min=2, help="how many the device has room for")] = 256,
    seconds: Annotated[float, typer.Option(min=0.1, help="of each measurement")] = 15.0,
    quick: Annotated[bool, typer.Option(help="a short form: a tenth of the adapters and of the time")] = False,
    environments: Annotated[
        Path | None, typer.Option(help="folder of the peers' environments; by default ~/.cache/adapterd/peers")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder for fleet.html, fleet.json, fleet.md and its picture")
    ] = None,
) -> None:
    """Hit rates, latencies and throughput by popularity, start-up, cold loads, and one active adapter beside it all."""
    from dataclasses import replace

    from loadtest.fleet.bench import Plan
    from loadtest.fleet.bench import run as measure
    from loadtest.fleet.report import print_report, write_report
    from loadtest.peers.environments import DEFAULT_FOLDER
    from server.memory import settled

    plan = Plan(num=adapters, num_host=host, num_device=device, seconds=seconds)
    if quick:
        plan = replace(plan, num=1_000, num_host=200, num_device=64, num_large=20, seconds=seconds / 10, rounds=3)
    with settled():  # as a server is; the base comes later and is small
        report = measure(plan, environments or DEFAULT_FOLDER, shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]))
    print_report(report)
    if output:
        write_report(output, report)
