"""Adapters that fail batches are left alone for a while: a negative cache with back-off. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.backoff import back_off_s
from server.errors import Quarantined

MAX_KEYS = 4096
FREE = 2  # failures in a row that may be an input's fault
Key = tuple[str, str]


@dataclass(slots=True)
class _Failing:
    count: int
    until: float
    message: str


class Quarantine:
    """By tenant and target: what one tenant sends keeps no other from an adapter that both use.

    The third failure in a row costs a second, and each one more twice as long. `clock` gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failing: dict[Key, _Failing] = {}

    def __len__(self) -> int:
        return len(self._failing)

    def check(self, key: Key) -> None:
        """Raises Quarantined, with the time left."""
        failing = self._failing.get(key)
        if failing is not None and (left_s := failing.until - self._clock()) > 0:
            raise Quarantined(
                f"this adapter failed {failing.count} times in a row ({failing.message}); it is tried again in"
                f" {left_s:.1f} s",
                retry_after_s=left_s,
            )

    def failed(self, key: Key, message: str) -> None:
        failing = self._failing.setdefault(key, _Failing(0, 0.0, message))
        failing.count, failing.message = failing.count + 1, message
        if failing.count > FREE:
            failing.until = self._clock() + back_off_s(failing.count - FREE - 1)
        if len(self._failing) > MAX_KEYS:
            del self._failing[next(iter(self._failing))]

    def answered(self, key: Key) -> None:
        if self._failing:
            self._failing.pop(key, None)
