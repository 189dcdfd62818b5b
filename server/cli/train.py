"""adapterd train: an adapter from files of labelled texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.errors import AdapterdError, InvalidInput

if TYPE_CHECKING:
    from training.fit import Progress
    from training.run import Plan

NAME = "train"
CONNECT_S = 1.0
EXAMPLE = "adapterd train --task text-classification --train train.csv --test test.csv --output adapters/reviews"


def run(
    task: Annotated[
        str, typer.Option(help="text-classification, multi-label-classification, regression, token-classification")
    ],
    train: Annotated[Path, typer.Option(help="What to train on.")],
    output: Annotated[Path, typer.Option(help="Folder of the new adapter; its name is the adapter's.")],
    base: Annotated[
        str, typer.Option(help="As in serve: minilm, a directory or a hub id. By default the server's, else minilm.")
    ] = "",
    server: Annotated[
        str, typer.Option(help="host:port of a server whose base is trained on if it answers; none trains here.")
    ] = "127.0.0.1:50051",
    validation: Annotated[
        Path | None, typer.Option(help="What chooses the best epoch; by default a tenth of --train.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="What the adapter is scored on at the end.")] = None,
    config: Annotated[str, typer.Option(help="Method: seq_bn, double_seq_bn, lora[r=8], mam, ...")] = "seq_bn",
    on: Annotated[list[Path] | None, typer.Option(help="Frozen adapter below the new one; may be repeated.")] = None,
    epochs: Annotated[int, typer.Option(help="At most; it stops when validation gets no better.")] = 10,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation score before it stops.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, after its warm-up.")] = 5e-4,
    batch_size: Annotated[int, typer.Option(help="Texts per step.")] = 32,
    seed: Annotated[int, typer.Option(help="Of first weights and shuffling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    publish: Annotated[str, typer.Option(help="host:port of a server that is to serve it at once.")] = "",
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run that was stopped.")] = False,
) -> None:
    """Train an adapter and leave it with its card, scores and learning curve, ready to serve.

    Files are .csv, .tsv or .jsonl with columns text, text_pair where there are two, and label; for tagging .conll (a
    token and its tag per line) or .jsonl with tokens and tags; or a folder that the datasets library saved.

    Where a server answers, it trains on the base that it has, beside its callers; otherwise, and with the reason where
    it refuses, training is done here. A run here that was stopped goes on where its last epoch ended: give the same
    command again.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    try:
        from training.fit import TrainConfig
        from training.run import Plan
    except ImportError as error:
        typer.echo(f"adapterd: training needs {error.name}: pip install 'adapterd[train]'", err=True)
        raise typer.Exit(2) from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        settings = TrainConfig(epochs, learning_rate, batch_size, patience=patience, seed=seed)
        plan = Plan(base, task, train, validation, test, output, config, device, tuple(on or ()), settings)
        with Bars(*columns) as bars:
            row = bars.add_task(output.name, total=None)

            def progress(step: int, steps: int, loss: float) -> None:
                bars.update(row, completed=step, total=steps, description=f"{output.name}, loss {loss:.3f}")

            if not _train_there(plan, server, progress, bars.console.print):
                _train_here(plan, progress, restart)
    except AdapterdError as error:
        typer.echo(f"adapterd: {error.message}", err=True)
        raise typer.Exit(2) from error
    _print(output)
    if publish:
        _publish(output, publish)


def _train_here(plan: Plan, progress: Progress, restart: bool) -> None:
    from training.run import train

    train(replace(plan, base=plan.base or "minilm"), progress, restart=restart)


def _train_there(plan: Plan, server: str, progress: Progress, say: Callable[[str], None]) -> bool:
    """Whether a server has trained it. What it refuses with is told; what is wrong with the plan is raised."""
    from adapterd import Client, Error
    from adapterd.v1 import training_pb2 as v1
    from adapters_cache.formats.adapterhub import check_replaceable
    from server.folders import folder_beside, put_in_place

    if server == "none" or plan.on or plan.work.exists() or (plan.base and Path(plan.base).is_dir()):
        return False  # an unfinished run here goes on here
    check_replaceable(plan.output)
    settings = plan.training
    asked = v1.TrainPlan(
        name=plan.name,
        task=plan.task,
        config=plan.config,
        epochs=settings.epochs,
        patience=settings.patience,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    paths = {"train": plan.train, "validation": plan.validation, "test": plan.test}
    files = {split: path for split, path in paths.items() if path is not None}
    for path in files.values():
        if not path.exists():
            raise InvalidInput(f"{path} does not exist; name a .csv, .tsv, .jsonl or .conll file, or a datasets folder")
    if any(path.is_dir() for path in files.values()):
        return False
    has_begun = False
    try:
        with Client(server, max_retries=0) as client, folder_beside(plan.output) as aside:
            name = client.base(timeout=CONNECT_S).name
            if plan.base and Path(plan.base).name != name:
                say(f"{server} serves {name}, not {plan.base}: training here")
                return False
            for event in client.train(asked, files):
                has_begun = True
                if event.HasField("queued"):
                    say(
                        f"training on {name} at {server}, {event.queued.num_before} before it; if it is stopped,"
                        " nothing is kept (--server none trains here and goes on)"
                    )
                elif event.HasField("step"):
                    progress(event.step.step, event.step.num_steps, event.step.loss)
                else:
                    with (aside / Path(event.file.path).name).open("ab") as file:
                        file.write(event.file.content)
            put_in_place(aside, plan.output)
            return True
    except Error as error:
        if has_begun or error.reason == "INVALID_INPUT":
            raise InvalidInput(f"{server}: {error.message or error}") from error
        if error.reason:
            say(f"{server}: {error.message}; training here")
        return False


def _publish(folder: Path, server: str) -> None:
    from adapterd import Client, Error

    try:
        with Client(server) as client:
            reply = client.publish(folder)
    except Error as error:
        typer.echo(f"adapterd: {server} does not serve it: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{server} serves {reply.adapter.name} as {reply.adapter.digest[:12]}")


def _print(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = Table("split", "metric", "score", box=None, pad_edge=False)
    for split in ("validation", "test"):
        for name, value in facts[split]["metrics"].items() if facts[split] else ():
            table.add_row(split, name, f"{value:.4f}")
    Console().print(table)
    typer.echo(
        f"{folder}: {facts['num_trained']:,} parameters; serve it with: adapterd serve --adapters {folder.parent}"
    )
