"""adapterd verify: answer recorded cases through the serving engine and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.verify import Outcome

NAME = "verify"
EXAMPLE = "adapterd verify my-cases --mixed --seed 1"
MAX_REASONS = 12


def run(
    directory: Annotated[Path, typer.Argument(help="Folder with manifest.json; with --record, where to write it.")],
    tag: Annotated[str, typer.Option(help="Only cases that carry this tag.")] = "",
    mixed: Annotated[bool, typer.Option("--mixed", help="Shuffle the rows of all cases into mixed batches.")] = False,
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    tolerance: Annotated[float, typer.Option(help="Multiplies every case's own tolerance.")] = 1.0,
    record: Annotated[bool, typer.Option("--record", help="Write cases of your own adapters instead.")] = False,
    base: Annotated[str, typer.Option(help="With --record: the base, as in serve.")] = "minilm",
    adapters: Annotated[Path | None, typer.Option(help="With --record: folder of adapters.")] = None,
    texts: Annotated[Path | None, typer.Option(help="With --record: a text per line. Default: random tokens.")] = None,
) -> None:
    """Check that the engine answers as recorded. Exit code 1 if any case failed.

    Alone, each case is a batch; with --mixed, rows of all cases ride together while adapters are evicted throughout.
    """
    from server.errors import AdapterdError

    try:
        if record:
            _record(directory, base, adapters, texts, device, seed)
        else:
            _check(directory, tag, mixed, seed, device, dtype, tolerance)
    except AdapterdError as error:
        typer.echo(f"adapterd: {error.message}", err=True)
        raise typer.Exit(2) from error


def _check(directory: Path, tag: str, mixed: bool, seed: int, device: str, dtype: str, tolerance: float) -> None:
    from rich.progress import Progress

    from server.config import ModelConfig
    from server.verify import check

    with Progress(transient=True) as bar:
        task = bar.add_task("verify", total=None)
        outcomes = check(
            directory,
            ModelConfig(device=device, dtype=dtype),
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
    lines = texts.read_text(encoding="utf-8").splitlines() if texts else []
    num_cases = record(
        directory, ModelConfig(base=base, device=device), adapters, [t for t in lines if t.strip()], seed
    )
    typer.echo(f"recorded {num_cases} cases in {directory}; check them with: adapterd verify {directory} --mixed")


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
    failed = sum(outcome.is_failed for outcome in group)
    unsupported = sum(outcome.is_unsupported for outcome in group)
    worst = max((outcome.error for outcome in group if not outcome.is_unsupported), default=0.0)
    return str(len(group) - failed - unsupported), str(failed), str(unsupported), f"{worst:.3f}"


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
