"""adapterd train: an adapter from files of labelled texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.calls import connected, explained
from server.cli.completion import bases, devices, methods, tasks
from server.cli.options import DEFAULT_SERVER, Json, Token
from server.cli.output import Failure, progress, quiet_stdout, reported, say, tell
from server.errors import InvalidInput

if TYPE_CHECKING:
    from training.fit import Progress
    from training.run import Plan

NAME = "train"
CONNECT_S = 1.0
EXAMPLE = "adapterd train --task text-classification --train train.csv --test test.csv --output adapters/reviews"


def run(
    task: Annotated[
        str,
        typer.Option(
            help="text-classification, multi-label-classification, regression, token-classification",
            autocompletion=tasks,
        ),
    ],
    train: Annotated[Path, typer.Option(help="What to train on.")],
    output: Annotated[Path, typer.Option(help="Folder of the new adapter; its name is the adapter's.")],
    base: Annotated[
        str,
        typer.Option(
            help="As in serve: minilm, a directory or a hub id. By default the server's, else minilm.",
            autocompletion=bases,
        ),
    ] = "",
    server: Annotated[
        str, typer.Option(help="host:port of a server whose base is trained on if it answers; none trains here.")
    ] = DEFAULT_SERVER,
    validation: Annotated[
        Path | None, typer.Option(help="What chooses the best epoch; by default a tenth of --train.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="What the adapter is scored on at the end.")] = None,
    config: Annotated[
        str, typer.Option(help="Method: seq_bn, double_seq_bn, lora[r=8], mam, ...", autocompletion=methods)
    ] = "seq_bn",
    on: Annotated[list[Path] | None, typer.Option(help="Frozen adapter below the new one; may be repeated.")] = None,
    epochs: Annotated[int, typer.Option(help="At most; it stops when validation gets no better.")] = 10,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation score before it stops.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, after its warm-up.")] = 5e-4,
    batch_size: Annotated[int, typer.Option(help="Texts per step.")] = 32,
    seed: Annotated[int, typer.Option(help="Of first weights and shuffling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.", autocompletion=devices)] = "auto",
    publish: Annotated[str, typer.Option(help="host:port of a server that is to serve it at once.")] = "",
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run that was stopped.")] = False,
    as_json: Json = False,
    token: Token = None,
) -> None:
    """Train an adapter and leave it with its card, scores and learning curve, ready to serve.

    Files are .csv, .tsv or .jsonl with columns text, text_pair where there are two, and label; for tagging .conll (a
    token and its tag per line) or .jsonl with tokens and tags; or a folder that the datasets library saved.

    Where a server answers, it trains on the base that it has, beside its callers; otherwise, and with the reason where
    it refuses, training is done here. A run here that was stopped goes on where its last epoch ended: give the same
    command again.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    try:
        from training.fit import TrainConfig
        from training.run import Plan
    except ImportError as error:
        text = f"training needs {error.name}, which is not installed: pip install 'adapterd[train]'"
        tell(Failure(text, text, "NOT_INSTALLED", "FAILED_PRECONDITION"), as_json)
        raise typer.Exit(2) from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = progress(*columns, is_silent=as_json, transient=False)
    with reported(as_json, exit_code=2), bar as bars, quiet_stdout(as_json):
        settings = TrainConfig(epochs, learning_rate, batch_size, patience=patience, seed=seed)
        plan = Plan(base, task, train, validation, test, output, config, device, tuple(on or ()), settings)
        row = bars.add_task(output.name, total=None)

        def show(step: int, steps: int, loss: float) -> None:
            bars.update(row, completed=step, total=steps, description=f"{output.name}, loss {loss:.3f}")

        remark = (lambda text: None) if as_json else bars.console.print
        is_done = _train_there(plan, server, token, show, remark)
        if not is_done:
            _train_here(plan, show, restart)
    if not as_json:
        _print(output)
    digest = _publish(output, publish, token, as_json) if publish else ""
    if as_json:
        say({**_document(output), "trained_by": server if is_done else "", "published_digest": digest})


def _train_here(plan: Plan, show: Progress, restart: bool) -> None:
    from training.run import train

    train(replace(plan, base=plan.base or "minilm"), show, restart=restart)


def _train_there(plan: Plan, server: str, token: str | None, show: Progress, remark: Callable[[str], None]) -> bool:
    """Whether a server has trained it. What it refuses with is told; what is wrong with the plan is raised."""
    from adapterd import Error
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
        with connected(server, token, max_retries=0) as client, folder_beside(plan.output) as aside:
            name = client.base(timeout=CONNECT_S).name
            if plan.base and Path(plan.base).name != name:
                remark(f"{server} serves {name}, not {plan.base}: training here")
                return False
            for event in client.train(asked, files):
                has_begun = True
                if event.HasField("queued"):
                    remark(
                        f"training on {name} at {server}, {event.queued.num_before} before it; if it is stopped,"
                        " nothing is kept (--server none trains here and goes on)"
                    )
                elif event.HasField("step"):
                    show(event.step.step, event.step.num_steps, event.step.loss)
                else:
                    with (aside / Path(event.file.path).name).open("ab") as file:
                        file.write(event.file.content)
            put_in_place(aside, plan.output)
            return True
    except Error as error:
        if has_begun or error.reason == "INVALID_INPUT":
            raise InvalidInput(f"{server}: {error.message or error}") from error
        if error.reason:
            remark(f"{server}: {error.message}; training here")
        return False


def _publish(folder: Path, server: str, token: str | None, as_json: bool) -> str:
    """The digest that a server serves it as."""
    from adapterd import Error

    with reported(as_json), connected(server, token) as client:
        try:
            adapter = client.publish(folder).adapter
        except Error as error:
            message = f"{server} does not serve it: {explained(server, error)}"
            raise Error(error.code, message, error.reason, error.retry_after_s) from error
    if not as_json:
        typer.echo(f"{server} serves {adapter.name} as {adapter.digest[:12]}")
    return str(adapter.digest)


def _document(folder: Path) -> dict[str, Any]:
    facts = _facts(folder)
    scores = {split: facts[split]["metrics"] if facts[split] else None for split in ("validation", "test")}
    return {"folder": str(folder), "num_parameters": facts["num_trained"], **scores}


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return facts


def _print(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    facts = _facts(folder)
    table = Table("split", "metric", "score", box=None, pad_edge=False)
    for split in ("validation", "test"):
        for name, value in facts[split]["metrics"].items() if facts[split] else ():
            table.add_row(split, name, f"{value:.4f}")
    Console().print(table)
    typer.echo(
        f"{folder}: {facts['num_trained']:,} parameters; serve it with: adapterd serve --adapters {folder.parent}"
    )
