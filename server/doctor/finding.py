"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it serves, and not as somebody may expect
    PROBLEM = "problem"  # it does not start, or does not do what the configuration asks for


@dataclass(frozen=True, slots=True)
class Finding:
    """
    name     of the check, in one word; several findings may have it
    message  the value that was looked at, and what it should be
    remedy   a command, or the setting to change and to what; empty where all is well
    """

    name: str
    state: State
    message: str
    remedy: str = ""


def ok(name: str, message: str) -> Finding:
    return Finding(name, State.OK, message)


def warning(name: str, message: str, remedy: str) -> Finding:
    return Finding(name, State.WARNING, message, remedy)


def problem(name: str, message: str, remedy: str) -> Finding:
    return Finding(name, State.PROBLEM, message, remedy)
