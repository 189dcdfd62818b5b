"""How many requests each front has in flight, in memory that all of them see."""

from __future__ import annotations

import mmap
import os
from typing import Self


class Occupancy:
    """One cell per front. Front i alone writes cell i, so there is no lock.

    The limit of requests in flight is one for the whole server, wherever its connections end. Fronts that admit in the
    same microsecond may exceed it by one each.
    """

    CELL_BYTES = 8

    def __init__(self, fd: int, num_fronts: int) -> None:
        self.fd = fd
        self._cells = memoryview(mmap.mmap(fd, num_fronts * self.CELL_BYTES)).cast("q")

    @classmethod
    def create(cls, num_fronts: int) -> Self:
        """All cells 0. The descriptor is for child processes."""
        fd = os.memfd_create("adapterd-in-flight")
        os.ftruncate(fd, num_fronts * cls.CELL_BYTES)
        return cls(fd, num_fronts)

    def close(self) -> None:
        os.close(self.fd)

    def set(self, front: int, num_in_flight: int) -> None:
        self._cells[front] = num_in_flight

    def counts(self) -> list[int]:
        """Of every front."""
        return list(self._cells)


class Seat:
    """The cell of one front, for its admission."""

    def __init__(self, occupancy: Occupancy, front: int) -> None:
        self._occupancy = occupancy
        self._front = front

    def set(self, num_in_flight: int) -> None:
        self._occupancy.set(self._front, num_in_flight)

    def total(self) -> int:
        return sum(self._occupancy.counts())
