"""How long each stage of one request took, and in which one it was dropped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.metrics import Metrics


class Stopwatch:
    """Seconds per stage of one request. Work that ends inside a stage before the queue is counted as dropped."""

    def __init__(self, deadline: float | None, metrics: Metrics) -> None:
        self.seconds: dict[str, float] = {}
        self._deadline = deadline
        self._metrics = metrics
        self._started = time.monotonic()

    def lap(self, stage: str) -> None:
        """`stage` ends now."""
        now = time.monotonic()
        self.seconds[stage] = now - self._started
        self._started = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            self._count_dropped(name)
            raise
        self.lap(name)

    def _count_dropped(self, stage: str) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._metrics.expired(stage)
        else:
            self._metrics.cancelled()
