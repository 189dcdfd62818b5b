"""adapterd verify: answer recorded cases through the serving engine and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.completion import backends, bases, devices, dtypes
from server.cli.options import Json
from server.cli.output import progress, quiet_stdout, reported, say

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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.", autocompletion=devices)] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.", autocompletion=dtypes)] = "float32",
    backend: Annotated[
        str, typer.Option(help="How adapters are computed: eager, triton, reference.", autocompletion=backends)
    ] = "eager",
    tolerance: Annotated[float, typer.Option(help="Multiplies every case's own tolerance.")] = 1.0,
    record: Annotated[bool, typer.Option("--record", help="Write cases of your own adapters instead.")] = False,
    adapter: Annotated[
        str, typer.Option(help="Prove this adapter or composition of --adapters, without recorded cases.")
    ] = "",
    base: Annotated[
        str, typer.Option(help="With --record and --adapter: the base, as in serve.", autocompletion=bases)
    ] = "minilm",
    adapters: Annotated[Path | None, typer.Option(help="With --record and --adapter: folder of adapters.")] = None,
    texts: Annotated[Path | None, typer.Option(help="With --record: a text per line. Default: random tokens.")] = None,
    as_json: Json = False,
) -> None:
    """Check that the engine answers as recorded. Exit code 1 if any case failed, 2 if nothing could be checked.

    Alone, each case is a batch; with --mixed, rows of all cases ride together while adapters are evicted throughout.
    With --adapter, probe inputs go through the engine alone and in a mixed batch, and through a plain forward pass.
    """
    from server.config import ModelConfig
    from server.errors import InvalidInput

    with reported(as_json, exit_code=2):
        if adapter:
            model = ModelConfig(base=base, device=device, dtype=dtype, backend=backend)
            _prove(adapter, model, adapters, tolerance, as_json)
            return
        _refuse(context, *(("with", CHECK_ONLY) if record else ("without", RECORD_ONLY)))
        if directory is None:
            raise InvalidInput("name a folder of recorded cases, or an adapter with --adapter")
        if record:
            _record(directory, base, adapters, texts, device, seed, as_json)
        else:
            model = ModelConfig(device=device, dtype=dtype, backend=backend)
            _check(directory, model, tag, mixed, seed, tolerance, as_json)


def _prove(adapter: str, model: ModelConfig, adapters: Path | None, tolerance: float, as_json: bool) -> None:
    from server.difference import tolerance_of
    from server.errors import InvalidInput
    from server.probe import NotProven, probe

    if adapters is None:
        raise InvalidInput("--adapter needs --adapters, a folder whose sub-folders are adapters")
    limit = tolerance_of("float32") * tolerance
    try:
        with quiet_stdout(as_json):
            error = probe(model, adapters, adapter, limit)
    except NotProven as refused:
        with reported(as_json):  # checked, and found different: exit code 1
            raise refused
    if as_json:
        say({"adapter": adapter, "difference": error, "tolerance": limit})
    else:
        typer.echo(
            f"{adapter} passed: it differs from its plain forward pass by {error:.3g}, the tolerance is {limit:g}"
        )


def _refuse(context: typer.Context, where: str, names: Sequence[str]) -> None:
    """Raises InvalidInput for options that would be ignored."""
    from server.errors import InvalidInput

    sources = {name: context.get_parameter_source(name) for name in names}
    given = [f"--{name}" for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise InvalidInput(f"{', '.join(given)} cannot be used {where} --record")


def _check(
    directory: Path, model: ModelConfig, tag: str, mixed: bool, seed: int, tolerance: float, as_json: bool
) -> None:
    from server.verify import check

    with progress(is_silent=as_json) as bar, quiet_stdout(as_json):
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
    if as_json:
        say(_document(outcomes))
    else:
        _print(outcomes)
    if any(outcome.is_failed for outcome in outcomes):
        raise typer.Exit(1)


def _record(
    directory: Path, base: str, adapters: Path | None, texts: Path | None, device: str, seed: int, as_json: bool
) -> None:
    from server.config import ModelConfig
    from server.errors import InvalidInput
    from server.record import record

    if adapters is None:
        raise InvalidInput("--record needs --adapters, a folder whose sub-folders are adapters")
    config = ModelConfig(base=base, device=device, dtype="float32")
    with quiet_stdout(as_json):
        recorded = record(directory, config, adapters, _lines(texts) if texts else [], seed)
    if as_json:
        facts = {"num_cases": recorded.num_cases, "left_out": dict(recorded.left_out)}
        say({"directory": str(directory), **facts})
    else:
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


def _document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """`error` of a case is its worst one over its tolerance."""
    num_passed, num_failed, num_unsupported = _numbers(outcomes)
    cases = [
        {
            "id": outcome.case["id"],
            "base": outcome.case["base"],
            "methods": outcome.case["methods"],
            "outcome": "unsupported" if outcome.is_unsupported else "failed" if outcome.is_failed else "passed",
            "error": outcome.error,
            "reason": outcome.reason,
        }
        for outcome in outcomes
    ]
    numbers = {"num_passed": num_passed, "num_failed": num_failed, "num_unsupported": num_unsupported}
    return {**numbers, "cases": cases}


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

    error = worst(outcome.error for outcome in group if not outcome.is_unsupported)
    return *map(str, _numbers(group)), f"{error:.3f}"


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
    passed, failed, unsupported = _numbers(outcomes)
    return f"{passed} passed, {failed} failed, {unsupported} unsupported"


def _numbers(outcomes: Sequence[Outcome]) -> tuple[int, int, int]:
    """Passed, failed and unsupported."""
    failed = sum(outcome.is_failed for outcome in outcomes)
    unsupported = sum(outcome.is_unsupported for outcome in outcomes)
    return len(outcomes) - failed - unsupported, failed, unsupported
