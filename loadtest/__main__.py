"""`python -m loadtest VERB`: one verb per benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")


@app.callback()
def _verbs() -> None:
    """Benchmarks of adapterd. Every figure is a ratio within one run; absolute times belong to the machine."""


@app.command(epilog="Example: python -m loadtest engine --base minilm --output /tmp/report")
def engine(
    base: Annotated[
        list[str] | None, typer.Option(help="minilm, bert-base (that shape, random weights), or both")
    ] = None,
    budget: Annotated[list[int] | None, typer.Option(help="tokens per batch; may be repeated")] = None,
    adapters: Annotated[int, typer.Option(help="distinct adapters in the mixed runs")] = 32,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    backend: Annotated[str, typer.Option(help="how adapters are computed: eager, triton, reference")] = "eager",
    quick: Annotated[bool, typer.Option(help="a short form: minilm, two budgets, three rounds")] = False,
    output: Annotated[Path | None, typer.Option(help="folder for engine.json, engine.md and engine.png")] = None,
) -> None:
    """Offline tokens/s: packed base, one adapter, many adapters, and plain transformers on padded batches."""
    from loadtest.engine import EngineBench, Plan
    from loadtest.report import print_table, write_report

    plan = Plan(
        bases=tuple(base or (["minilm"] if quick else ["minilm", "bert-base"])),
        budgets=tuple(budget or ([1024, 4096] if quick else [1024, 2048, 4096, 8192, 16384])),
        num_adapters=adapters,
        rounds=3 if quick else rounds,
        device=device,
        dtype=dtype,
        backend=backend,
    )
    report = EngineBench(plan).run()
    print_table(report)
    if output:
        write_report(output, report)


@app.command(epilog="Example: python -m loadtest methods --budget 4096")
def methods(
    base: Annotated[str, typer.Option(help="minilm, a directory, or a hub id")] = "minilm",
    budget: Annotated[int, typer.Option(help="tokens per batch")] = 4096,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    output: Annotated[Path | None, typer.Option(help="folder for methods.json and methods.md")] = None,
) -> None:
    """What a batch of every method costs beside one of plain bottlenecks, and what Parallel saves."""
    from loadtest.methods import run
    from loadtest.report import print_figures, write_figures

    report = run(base, budget, rounds, device, dtype)
    print_figures(report)
    if output:
        write_figures(output, report)


if __name__ == "__main__":
    app()
