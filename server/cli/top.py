"""adapterd top: a live view of a running server."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from server.cli.options import Json, Token
from server.cli.output import Failure, say, tell

if TYPE_CHECKING:
    from rich.console import RenderableType

    from server.top.scrape import Scrape
    from server.top.snapshot import LastUse

NAME = "top"
EXAMPLE = "adapterd top --http 127.0.0.1:9090"
DEFAULT_PLACE = "127.0.0.1:9090"
LEAST_INTERVAL_S = 0.1


@dataclass(slots=True)
class Watcher:
    """Looks again and again; each snapshot is of what happened since the look before."""

    place: str
    token: str | None
    last_use: LastUse
    before: Scrape | None = None

    def look(self) -> dict[str, Any] | None:
        """None at the first look. Raises NoAnswer; the next look is then a first one."""
        from server.top.scrape import NoAnswer, scrape
        from server.top.snapshot import snapshot

        try:
            after = scrape(self.place, self.token)
        except NoAnswer:
            self.before = None
            raise
        before, self.before = self.before, after
        return snapshot(before, after, self.last_use) if before is not None else None


def run(
    http: Annotated[str, typer.Option(help="host:port of the server's metrics, or their whole URL.")] = DEFAULT_PLACE,
    interval: Annotated[
        float, typer.Option(min=LEAST_INTERVAL_S, help="Seconds between two looks, which rates are of.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One snapshot, and the end.")] = False,
    as_json: Json = False,
    token: Token = None,
) -> None:
    """Show requests and tokens per second, latencies by stage, batches, tiers, tenants and adapters, as they change.

    Ctrl-C ends it. With --json each snapshot is an object on a line of its own.
    """
    from server.top.snapshot import LastUse

    watcher = Watcher(http, token, LastUse())
    with _ended_by_signals():
        if once:
            _once(watcher, interval, as_json)
        elif as_json:
            _lines(watcher, interval)
        else:
            _live(watcher, interval)


def _once(watcher: Watcher, interval: float, as_json: bool) -> None:
    from rich.console import Console

    from server.top.scrape import NoAnswer
    from server.top.view import view

    try:
        watcher.look()
        time.sleep(interval)
        facts = watcher.look()
    except NoAnswer as error:
        tell(_failure(str(error)), as_json)
        raise typer.Exit(1) from error
    if as_json:
        say(facts)
    else:
        console = Console()
        console.print(view(facts, watcher.place, console.width, console.height))


def _lines(watcher: Watcher, interval: float) -> None:
    from server.top.scrape import NoAnswer

    while True:
        try:
            if (facts := watcher.look()) is not None:
                say(facts)
        except NoAnswer as error:
            tell(_failure(f"{error.why}; trying again"), as_json=True)
        time.sleep(interval)


def _live(watcher: Watcher, interval: float) -> None:
    """On a terminal one picture that changes, which leaves nothing behind; elsewhere one picture after the other."""
    from rich.console import Console
    from rich.live import Live

    from server.top.scrape import NoAnswer
    from server.top.view import view

    console = Console()
    live = Live(console=console, screen=True, auto_refresh=False) if console.is_terminal else None

    def show(picture: RenderableType) -> None:
        if live is None:
            console.print(picture)
        else:
            live.update(picture, refresh=True)

    with live if live is not None else nullcontext():
        facts, trouble = None, ""
        while True:
            try:
                facts, trouble = watcher.look(), ""
            except NoAnswer as error:
                trouble = error.why
            show(view(facts, watcher.place, console.width, console.height, trouble))
            time.sleep(interval)


def _failure(text: str) -> Failure:
    return Failure(text, text, "UNAVAILABLE", "UNAVAILABLE")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end it in order: the terminal is as it was before."""

    def end(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before: Callable[[int, Any], Any] | int | None = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
