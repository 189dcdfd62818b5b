"""What other methods cost beside bottlenecks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "methods"
EPILOG = "Example: python -m loadtest methods --budget 4096"


def run(
    base: Annotated[str, typer.Option(help="minilm, a directory, or a hub id")] = "minilm",
    budget: Annotated[int, typer.Option(help="tokens per batch")] = 4096,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    output: Annotated[Path | None, typer.Option(help="folder for methods.json and methods.md")] = None,
) -> None:
    """What a batch of every method costs beside one of plain bottlenecks, and what Parallel saves."""
    from loadtest.methods import run as measure
    from loadtest.report import print_figures, write_figures

    report = measure(base, budget, rounds, device, dtype)
    print_figures(report)
    if output:
        write_figures(output, report)
