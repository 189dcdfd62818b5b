"""`adapterd train` beside AdapterHub's library."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

NAME = "training"
EPILOG = "Example: python -m loadtest training --data data --epochs 3 --output docs/benchmarks/minilm"


def run(
    data: Annotated[Path, typer.Option(help="folder with sst2 and snips, as for training.demo")],
    base: Annotated[str, typer.Option(help="minilm, or a BERT's folder")] = "minilm",
    corpus: Annotated[
        list[str] | None, typer.Option(help="sst2, snips-intent, snips-slots; may be repeated; by default all")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="of every training")] = 3,
    environments: Annotated[
        Path | None, typer.Option(help="folder of the peers' environments; by default ~/.cache/adapterd/peers")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder for training.json and training.md")] = None,
) -> None:
    """Test scores and wall time of `adapterd train` beside AdapterHub's library: same base, files, method, epochs."""
    from loadtest.peers.environments import DEFAULT_FOLDER
    from loadtest.peers.process import PeerFailed
    from loadtest.training import CORPORA
    from loadtest.training import run as compare
    from loadtest.training_report import print_report, write_report

    if unknown := sorted(set(corpus or ()) - set(CORPORA)):
        raise typer.BadParameter(f"{', '.join(unknown)}; known: {', '.join(CORPORA)}", param_hint="--corpus")
    command = shlex.join(["python", "-m", "loadtest", *sys.argv[1:]])
    try:
        report = compare(data, base, corpus or tuple(CORPORA), seeds, epochs, environments or DEFAULT_FOLDER, command)
    except PeerFailed as error:
        typer.echo(f"loadtest: {error}", err=True)
        raise typer.Exit(1) from error
    print_report(report)
    if output:
        write_report(output, report)
