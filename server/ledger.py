"""Who has how much inside of the server, in memory that all of its front processes see."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from typing import Self

MAX_TENANTS = 1024  # that were declared since the start, with index 0 for all together
REQUESTS, TOKENS, BYTES, ADMITTED_REQUESTS, ADMITTED_TOKENS, REFUSED_AT = range(6)
NUM_FIELDS = 6
RATE, WEIGHTS, BUSY_TOKENS = range(3)
NUM_SHARED = 3
CELL_BYTES = 8
MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Held:
    """Requests that were admitted and are not answered, and what they hold. Tokens are exact once they are known."""

    requests: int
    tokens: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What the engine tells of itself.

    tokens_per_s   that the device computes; 0 before the first full batch
    weights        of the tenants that have work in the engine, together
    busy_tokens    of a few full batches: with so many inside, the device never waits for work
    """

    tokens_per_s: float
    weights: float
    busy_tokens: int


class Ledger:
    """Counters by tenant, for each front its own: front i alone writes its cells, so there is no lock.

    What is shared beside them is the pace, which the engine writes whole.

    Limits are for the whole server, wherever its connections end. Fronts that admit in the same microsecond may exceed
    one by a request each. `front` is who writes here.
    """

    def __init__(self, cells: memoryview, num_fronts: int, front: int = 0, fd: int = -1) -> None:
        self._cells = cells
        self._num_fronts = num_fronts
        self._own = self._block(front)
        self.fd = fd

    @classmethod
    def local(cls) -> Self:
        """Of one process."""
        return cls(memoryview(bytearray(_size(1))).cast("q"), 1)

    @classmethod
    def create(cls, num_fronts: int, front: int = 0) -> Self:
        """All cells 0. The descriptor is for child processes."""
        fd = os.memfd_create("adapterd-ledger")
        os.ftruncate(fd, _size(num_fronts))
        return cls.open(fd, num_fronts, front)

    @classmethod
    def open(cls, fd: int, num_fronts: int, front: int = 0) -> Self:
        return cls(memoryview(mmap.mmap(fd, _size(num_fronts))).cast("q"), num_fronts, front, fd)

    def close(self) -> None:
        os.close(self.fd)

    # what fronts write

    def enter(self, tenant: int, num_tokens: int, num_bytes: int) -> None:
        for index in (0, tenant):
            self._add(index, (1, num_tokens, num_bytes, 1, num_tokens))

    def correct(self, tenant: int, more_tokens: int) -> None:
        """The tokens of a request that is inside are known now."""
        for index in (0, tenant):
            self._add(index, (0, more_tokens, 0, 0, more_tokens))

    def leave(self, tenant: int, num_tokens: int, num_bytes: int) -> None:
        for index in (0, tenant):
            self._add(index, (-1, -num_tokens, -num_bytes, 0, 0))

    def _add(self, index: int, changes: tuple[int, ...]) -> None:
        start = self._own + index * NUM_FIELDS
        for field, change in enumerate(changes):
            if change:
                self._cells[start + field] += change

    def refused(self, tenant: int) -> None:
        """It was, for it asks for more than its share of the device."""
        self._cells[self._own + tenant * NUM_FIELDS + REFUSED_AT] = time.monotonic_ns() // 1000

    # what everybody reads

    def held(self, tenant: int = 0) -> Held:
        """By a tenant, or by all."""
        return Held(self._sum(tenant, REQUESTS), self._sum(tenant, TOKENS), self._sum(tenant, BYTES))

    def admitted(self, tenant: int) -> tuple[int, int]:
        """Requests and tokens of a tenant since the start."""
        return self._sum(tenant, ADMITTED_REQUESTS), self._sum(tenant, ADMITTED_TOKENS)

    @property
    def own_requests(self) -> int:
        """Of this front, in flight."""
        return self._cells[self._own + REQUESTS]

    def since_refused_s(self, tenant: int) -> float:
        """By any front."""
        at = tenant * NUM_FIELDS + REFUSED_AT
        last = max(self._cells[self._block(front) + at] for front in range(self._num_fronts))
        return time.monotonic() - last / MICRO

    def _sum(self, tenant: int, field: int) -> int:
        at = tenant * NUM_FIELDS + field
        return sum(self._cells[self._block(front) + at] for front in range(self._num_fronts))

    @staticmethod
    def _block(front: int) -> int:
        return NUM_SHARED + front * MAX_TENANTS * NUM_FIELDS

    # what the engine writes

    def set_pace(self, pace: Pace) -> None:
        self._cells[RATE] = int(pace.tokens_per_s)
        self._cells[WEIGHTS] = int(pace.weights * MICRO)
        self._cells[BUSY_TOKENS] = pace.busy_tokens

    @property
    def pace(self) -> Pace:
        return Pace(self._cells[RATE], self._cells[WEIGHTS] / MICRO, self._cells[BUSY_TOKENS])

    def forget(self, front: int) -> None:
        """A front is gone: what it had in hand is nobody's any more, what it admitted stays counted."""
        for at in range(self._block(front), self._block(front + 1), NUM_FIELDS):
            for field in (REQUESTS, TOKENS, BYTES):
                if self._cells[at + field]:
                    self._cells[at + field] = 0


def _size(num_fronts: int) -> int:
    return CELL_BYTES * (NUM_SHARED + num_fronts * MAX_TENANTS * NUM_FIELDS)
