"""What was refused a moment ago, so that a broken adapter that many ask for is not read over and over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import AdapterRefused

# Callers that retry a broken adapter come many times a second; a folder that was mended by a copy that kept sizes and
# times is served again after this long at the latest.
REMEMBERED_S = 1.0

FolderState = tuple[tuple[str, int, int], ...]  # name, size and modification time in ns of every file


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """Why an adapter was refused, the state of its folder then, and the time."""

    state: FolderState
    error: AdapterRefused
    at: float


class Failures:
    """The last refusal of each name, for a short time. On the event loop thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_name: dict[str, Failure] = {}

    def find(self, name: str) -> Failure | None:
        failure = self._by_name.get(name)
        if failure is not None and self._clock() - failure.at >= REMEMBERED_S:
            self.forget(name)
            return None
        return failure

    def remember(self, name: str, state: FolderState, error: AdapterRefused) -> None:
        # a copy: the error itself has a traceback, whose frames hold the tensors that were read
        self._by_name[name] = Failure(state, again(error), self._clock())

    def forget(self, name: str) -> None:
        self._by_name.pop(name, None)


def again(error: AdapterRefused) -> AdapterRefused:
    """The same error without a traceback."""
    return type(error)(error.message, **error.metadata)
