"""A question with a time limit, for what may hang whatever its own timeouts say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """There was no answer in time."""


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` gives or raises. Raises TookTooLong after `seconds`; the thread that asked is left to itself."""
    outcome: list[tuple[bool, T | BaseException]] = []

    def work() -> None:
        try:
            outcome.append((True, ask()))
        except BaseException as error:  # handed to the caller below
            outcome.append((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TookTooLong(f"no answer within {seconds:g} s")
    has_answered, value = outcome[0]
    if not has_answered:
        assert isinstance(value, BaseException)
        raise value
    return value  # type: ignore[return-value]
