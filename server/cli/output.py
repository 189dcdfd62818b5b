"""What commands say: results on stdout, errors and progress on stderr, either as text or as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from server.errors import AdapterdError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.progress import Progress, ProgressColumn

FLAG = "--json"


@dataclass(frozen=True, slots=True)
class Failure:
    """
    text    the line for people, without the command's name
    error   what went wrong and what to do
    reason  stable cause in UPPER_SNAKE_CASE, as in docs/operations.md; empty where nobody named one
    code    the name of the gRPC status that it has, or would have
    """

    text: str
    error: str
    reason: str
    code: str


def say(value: Any) -> None:
    """One JSON document on a line of stdout."""
    typer.echo(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """NaN and Inf are no JSON: there is no number then."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say_message(message: Message) -> None:
    """A protobuf message as JSON: the names of its fields as in the proto, all of them there."""
    from google.protobuf.json_format import MessageToJson

    text = MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        ensure_ascii=False,
        indent=None,
    )
    typer.echo(text)


@contextmanager
def reported(as_json: bool = False, exit_code: int = 1, prefix: str = "adapterd: ") -> Iterator[None]:
    """Errors meant for whoever called, in a line or an object on stderr; then the command ends with `exit_code`."""
    try:
        yield
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        tell(failure, as_json, prefix)
        raise typer.Exit(exit_code) from error


def tell(failure: Failure, as_json: bool, prefix: str = "adapterd: ") -> None:
    if as_json:
        facts = {"error": failure.error, "reason": failure.reason, "code": failure.code}
        typer.echo(json.dumps(facts, ensure_ascii=False), err=True)
    else:
        typer.echo(f"{prefix}{failure.text}", err=True)


def failure_of(error: Exception) -> Failure | None:
    """None for what is no error of ours or of a call."""
    if isinstance(error, AdapterdError):
        from server.api.status import code_of

        return Failure(error.message, error.message, error.reason, code_of(error).name)
    if type(error).__module__ == "adapterd.errors":  # looked at without importing gRPC
        from adapterd import Error

        assert isinstance(error, Error)
        return Failure(str(error), error.message, error.reason, error.code.name)
    return None


@contextmanager
def progress(*columns: ProgressColumn | str, is_silent: bool = False, transient: bool = True) -> Iterator[Progress]:
    """Bars on stderr: what is on stdout is for whoever reads on. Silent where stderr is for a program too."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*columns, transient=transient, console=Console(stderr=True), disable=is_silent) as bars:
        yield bars


@contextmanager
def transfer_bar(what: str, *, is_silent: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar in bytes; the call that it gives takes those done and those in all."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with progress(*columns, is_silent=is_silent) as bars:
        row = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(row, completed=done, total=total)


@contextmanager
def quiet_stdout(is_quiet: bool) -> Iterator[None]:
    """Have what libraries print go to stderr, where stdout has to hold nothing but JSON."""
    with contextlib.redirect_stdout(sys.stderr) if is_quiet else contextlib.nullcontext():
        yield
