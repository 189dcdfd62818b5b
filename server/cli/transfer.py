"""What push, pull and search share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from server.errors import AdapterdError


@contextmanager
def reported() -> Iterator[None]:
    """Errors in a line, exit code 2."""
    try:
        yield
    except AdapterdError as error:
        typer.echo(f"adapterd: {error.message}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def transfer_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in bytes; the call that it gives takes those done and those in all."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True) as bar:
        row = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)
