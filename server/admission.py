"""Stage 1: say at the door, at once, whether a request may come in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from server.core import Parameters, Request
from server.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from server.metrics import Metrics

RETRY_AFTER_S = 0.1  # what a refused caller is told; a queue at its limit drains about this fast


class Tally(Protocol):
    """Where several processes with one limit count."""

    def set(self, num_in_flight: int) -> None:
        """That many are inside of this process."""

    def total(self) -> int:
        """Inside of all."""


class Admission:
    """Counts the requests that are inside and refuses those beyond the limit.

    All methods belong to the event loop's thread.

    tally   None: the limit is this process's own
    """

    def __init__(self, max_in_flight: int, metrics: Metrics, tally: Tally | None = None) -> None:
        self._max_in_flight = max_in_flight
        self._metrics = metrics
        self._tally = tally
        self._num_in_flight = 0
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @asynccontextmanager
    async def enter(self, request: Request) -> AsyncIterator[None]:
        """Hold a place for `request` while the body runs.

        Raises InvalidInput, Unavailable while draining, Overloaded at the limit, DeadlineExceeded if it came too late.
        """
        self._check(request)
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse newcomers from now on; True once nobody is inside, False if that took longer than `timeout_s`."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        except TimeoutError:
            return False
        return True

    def _check(self, request: Request) -> None:
        if self._is_draining:
            raise Unavailable("the server is draining; send the request to another one")
        if not request.inputs:
            raise InvalidInput("the request has 0 inputs; send at least 1")
        _check_parameters(request.parameters)
        late_s = time.monotonic() - request.deadline if request.deadline is not None else -1.0
        if late_s >= 0:
            self._metrics.expired("admit")
            raise DeadlineExceeded(f"the deadline passed {late_s:.3f} s before the request came in")
        num_in_flight = self._tally.total() if self._tally else self._num_in_flight
        if num_in_flight >= self._max_in_flight:
            raise Overloaded(
                f"{num_in_flight} requests are in flight, the limit is {self._max_in_flight}; "
                f"try again in {RETRY_AFTER_S} s",
                retry_after_s=RETRY_AFTER_S,
                limit=str(self._max_in_flight),
            )

    def _count(self, change: int) -> None:
        self._num_in_flight += change
        self._metrics.in_flight(self._num_in_flight)
        if self._tally:
            self._tally.set(self._num_in_flight)
        if self._num_in_flight:
            self._is_empty.clear()
        else:
            self._is_empty.set()


def _check_parameters(parameters: Parameters) -> None:
    if parameters.top_k is not None and parameters.top_k < 1:
        raise InvalidInput(f"top_k {parameters.top_k} must be at least 1; leave it out for the default")
    if parameters.threshold is not None and not 0 <= parameters.threshold <= 1:
        raise InvalidInput(f"threshold {parameters.threshold} must lie in [0, 1]")
