"""What failed a moment ago, so that a broken adapter that many ask for is not read over and over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from server.backoff import back_off_s
from server.errors import AdapterRefused, Unavailable

# Callers that retry a broken adapter come many times a second; a folder that was mended by a copy that kept sizes and
# times is served again after this long at the latest.
REMEMBERED_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """Why an adapter was refused, the stamp of its source then, and the time."""

    stamp: str
    error: AdapterRefused
    at: float


@dataclass(slots=True)
class _Silence:
    """A name whose origin did not answer in time: how often in a row, and until when it is left alone."""

    count: int
    until: float


class Failures:
    """The last refusal of each name, for a short time, and names whose origin is left alone. On the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_name: dict[str, Failure] = {}
        self._silent: dict[str, _Silence] = {}

    def find(self, name: str) -> Failure | None:
        failure = self._by_name.get(name)
        if failure is not None and self._clock() - failure.at >= REMEMBERED_S:
            del self._by_name[name]
            return None
        return failure

    def remember(self, name: str, stamp: str, error: AdapterRefused) -> None:
        # a copy: the error itself has a traceback, whose frames hold the tensors that were read
        self._by_name[name] = Failure(stamp, again(error), self._clock())

    def back_off(self, name: str) -> None:
        """Leave the origin of a name alone for a second, and for twice as long each time it is silent again."""
        silence = self._silent.setdefault(name, _Silence(0, 0.0))
        silence.until = self._clock() + back_off_s(silence.count)
        silence.count += 1

    def check(self, name: str) -> None:
        """Raises Unavailable, with the time left, while the origin of a name is left alone."""
        silence = self._silent.get(name)
        if silence is not None and (left := silence.until - self._clock()) > 0:
            raise Unavailable(
                f"adapter {name!r} could not be had within load_timeout_s from its origin, {silence.count} times in a"
                f" row; it is tried again in {left:.1f} s",
                retry_after_s=left,
            )

    def forget(self, name: str) -> None:
        self._by_name.pop(name, None)
        self._silent.pop(name, None)


def again(error: AdapterRefused) -> AdapterRefused:
    """The same error without a traceback."""
    return type(error)(error.message, **error.metadata)
