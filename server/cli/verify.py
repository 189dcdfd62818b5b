"""adapterd verify: answer recorded cases through the serving engine and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.config import ModelConfig
    from server.verify import Outcome

NAME = "verify"
EXAMPLE = "adapterd verify my-cases --mixed --seed 1"
MAX_REASONS = 12


CHECK_ONLY = ("tag", "mixed", "dtype", "backend", "tolerance")
RECORD_ONLY = ("base", "adapters", "texts")


def run(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(help="Folder with manifest.json; with --record, where to write it.")
    ] = None,
    tag: Annotated[str, typer.Option(help="Only cases that carry this tag.")] = "",
    mixed: Annotated[bool, typer.Option("--mixed", help="Shuffle the rows of all cases into mixed batches.")] = False,
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    backend: Annotated[str, typer.Option(help="How adapters are computed: eager, triton, reference.")] = "eager",
    tolerance: Annotated[float, typer.Option(help="Multiplies every case's own tolerance.")] = 1.0,
    record: Annotated[bool, typer.Option("--record", help="Write cases of your own adapters instead.")] = False,
    adapter: Annotated[
        str, typer.Option(help="Prove this adapter or composition of --adapters, without recorded cases.")
    ] = "",
    base: Annotated[str, typer.Option(help="With --record and --adapter: the base, as in serve.")] = "minilm",
    adapters: Annotated[Path | None, typer.Option(help="With --record and --adapter: folder of adapters.")] = None,
    texts: Annotated[Path | None, typer.Option(help="With --record: a text per line. Default: random tokens.")] = None,
) -> None:
    """Check that the engine answers as recorded. Exit code 1 if any case failed, 2 if nothing could be checked.

    Alone, each case is a batch; with --mixed, rows of all cases ride together while adapters are evicted throughout.
    With --adapter, probe inputs go through the engine alone and in a mixed batch, and through a plain forward pass.
    """
    from server.config import ModelConfig
    from server.errors import AdapterdError, InvalidInput

    try:
        if adapter:
            _prove(adapter, ModelConfig(base=base, device=device, dtype=dtype, backend=backend), adapters, tolerance)
            return
        _refuse(context, *(("with", CHECK_ONLY) if record else ("without", RECORD_ONLY)))
        if directory is None:
            raise InvalidInput("name a folder of recorded cases, or an adapter with --adapter")
        if record:
            _record(directory, base, adapters, texts, device, seed)
        else:
            _check(directory, ModelConfig(device=device, dtype=dtype, backend=backend), tag, mixed, seed, tolerance)
    except AdapterdError as error:
        typer.echo(f"adapterd: {error.message}", err=True)
        raise typer.Exit(2) from error


def _prove(adapter: str, model: ModelConfig, adapters: Path | None, tolerance: float) -> None:
    from server.difference import tolerance_of
    from server.errors import InvalidInput
    from server.probe import NotProven, probe

    if adapters is None:
        raise InvalidInput("--adapter needs --adapters, a folder whose sub-folders are adapters")
    limit = tolerance_of("float32") * tolerance
    try:
        error = probe(model, adapters, adapter, limit)
    except NotProven as refused:
        typer.echo(f"adapterd: {refused.message}", err=True)
        raise typer.Exit(1) from refused
    typer.echo(f"{adapter} passed: it differs from its plain forward pass by {error:.3g}, the tolerance is {limit:g}")


def _refuse(context: typer.Context, where: str, names: Sequence[str]) -> None:
    """Raises InvalidInput for options that would be ignored."""
    from server.errors import InvalidInput

    sources = {name: context.get_parameter_source(name) for name in names}
    given = [f"--{name}" for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise InvalidInput(f"{', '.join(given)} cannot be used {where} --record")


def _check(directory: Path, model: ModelConfig, tag: str, mixed: bool, seed: int, tolerance: float) -> None:
    from rich.progress import Progress

    from server.verify import check

    with Progress(transient=True) as bar:
        task = bar.add_task("verify", total=None)
        outcomes = check(
            directory,
            model,
            tag=tag,
            mixed=mixed,
            seed=seed,
            tolerance=tolerance,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _print(outcomes)
    if any(outcome.is_failed for outcome in outcomes):
        raise typer.Exit(1)


def _record(directory: Path, base: str, adapters: Path | None, texts: Path | None, device: str, seed: int) -> None:
    from server.config import ModelConfig
    from server.errors import InvalidInput
    from server.record import record

    if adapters is None:
        raise InvalidInput("--record needs --adapters, a folder whose sub-folders are adapters")
    config = ModelConfig(base=base, device=device, dtype="float32")
    recorded = record(directory, config, adapters, _lines(texts) if texts else [], seed)
    typer.echo(
        f"recorded {recorded.num_cases} cases in {directory}; check them with: adapterd verify {directory} --mixed"
    )
    for folder, reason in recorded.left_out.items():
        typer.echo(f"left out: {folder}: {reason}", err=True)
    if recorded.left_out:
        raise typer.Exit(1)


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises InvalidInput where there are none."""
    from server.errors import InvalidInput

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as UTF-8 text") from error
    if not lines:
        raise InvalidInput(f"{path} holds no text; leave --texts out for random tokens")
    return lines


def _print(outcomes: Sequence[Outcome]) -> None:
    """A row per method and family, then what failed and why, then what is not supported and why."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("method", "family", box=None, pad_edge=False)
    for column in ("passed", "failed", "unsupported", "worst error / tolerance"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        method = " + ".join(outcome.case["methods"]) or "base"
        groups.setdefault((method, outcome.case["base"]), []).append(outcome)
    for (method, family), group in sorted(groups.items()):
        table.add_row(method, family, *_counts(group))
    console.print(table)
    for title, chosen in (
        ("failed", [o for o in outcomes if o.is_failed]),
        ("unsupported", [o for o in outcomes if o.is_unsupported]),
    ):
        _print_reasons(console.print, title, chosen)
    console.print(_summary(outcomes))


def _counts(group: Sequence[Outcome]) -> tuple[str, ...]:
    from server.compare import worst

    failed = sum(outcome.is_failed for outcome in group)
    unsupported = sum(outcome.is_unsupported for outcome in group)
    error = worst(outcome.error for outcome in group if not outcome.is_unsupported)
    return str(len(group) - failed - unsupported), str(failed), str(unsupported), f"{error:.3f}"


def _print_reasons(echo: object, title: str, chosen: Sequence[Outcome]) -> None:
    assert callable(echo)
    reasons: dict[str, list[str]] = {}
    for outcome in chosen:
        reason = outcome.reason or f"error {outcome.error:.3g} x tolerance"
        reasons.setdefault(reason, []).append(outcome.case["id"])
    for reason, ids in list(reasons.items())[:MAX_REASONS]:
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        echo(f"{title}: {', '.join(ids[:3])}{more}: {reason}", markup=False)
    if len(reasons) > MAX_REASONS:
        echo(f"{title}: {len(reasons) - MAX_REASONS} more reasons")


def _summary(outcomes: Sequence[Outcome]) -> str:
    failed = sum(outcome.is_failed for outcome in outcomes)
    unsupported = sum(outcome.is_unsupported for outcome in outcomes)
    passed = len(outcomes) - failed - unsupported
    return f"{passed} passed, {failed} failed, {unsupported} unsupported"
