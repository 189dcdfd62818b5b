"""The engine alone, offline."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "engine"
EPILOG = """
A short form, a minute or two on two cores:

    python -m loadtest engine --quick --output /tmp/engine

What the committed figures come from; every axis, 1,000 resident adapters:

    python -m loadtest engine --base bert-base --output /tmp/engine

On a GPU, which fills the GPU column of the targets:

    python -m loadtest engine --base bert-base --device cuda --dtype bfloat16 --budget 32768 --output /tmp/engine

One axis alone, on values of your own:

    python -m loadtest engine --axis count --count 32 --count 4000
"""
AXES = {
    "mix": "mixes",
    "count": "counts",
    "method": "methods",
    "width": "widths",
    "budget": "budgets",
    "lengths": "length_names",
}


def run(
    base: Annotated[str, typer.Option(help="minilm, bert-base (random weights), or a directory")] = "minilm",
    axis: Annotated[
        list[str] | None, typer.Option(help=f"what to vary: {', '.join(AXES)}; may be repeated; without it, all")
    ] = None,
    count: Annotated[list[int] | None, typer.Option(help="resident adapters, zipf; may be repeated")] = None,
    method: Annotated[list[str] | None, typer.Option(help="method or configuration string; may be repeated")] = None,
    width: Annotated[list[int] | None, typer.Option(help="bottleneck width; may be repeated")] = None,
    budget: Annotated[int, typer.Option(help="tokens per batch at the centre of all axes; 0: 4096, quick 2048")] = 0,
    adapters: Annotated[int, typer.Option(help="adapters at the centre of all axes")] = 32,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    quick: Annotated[bool, typer.Option(help="a short form: fewer values, three rounds")] = False,
    output: Annotated[
        Path | None, typer.Option(help="folder for engine.html, engine.json, engine.md and its pictures")
    ] = None,
) -> None:
    """Offline tokens/s of any mix of adapters against the base alone, and against the device's own limits.

    Varied one at a time: the mix, how many adapters are resident, their method and width, tokens per batch, lengths.
    """
    from loadtest.engine import Plan
    from loadtest.engine import run as measure
    from loadtest.engine_report import print_report, write_report
    from loadtest.grid import QUICK, Grid

    if unknown := set(axis or ()) - AXES.keys():
        raise typer.BadParameter(f"{', '.join(unknown)} is not among {', '.join(AXES)}", param_hint="--axis")
    given = {"counts": count, "methods": method, "widths": width}
    values: dict[str, Any] = {name: tuple(own) for name, own in given.items() if own}
    values |= {field: () for name, field in AXES.items() if axis and name not in axis}
    centre = budget or (2048 if quick else 4096)
    grid = replace(QUICK if quick else Grid(), budget=centre, num_adapters=adapters, **values).with_budget(centre)
    report = measure(
        Plan(
            base=base,
            grid=grid,
            rounds=3 if quick else rounds,
            tokens=centre,
            device=device,
            dtype=dtype,
            command=shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]),
        )
    )
    print_report(report)
    if output:
        write_report(output, report)
