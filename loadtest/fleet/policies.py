"""What stays when there is no room: the server's own books beside plain least-recently-used, on the same requests."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from adapters_cache.books import LOAD_BYTES, Books, Entry
from loadtest.fleet.popularity import POPULARITY
from server.core import Adapter, Tier
from server.metrics import Metrics

MIB = 1 << 20
SIZES = (MIB // 4, MIB // 2, MIB, MIB, 2 * MIB, 4 * MIB)  # bytes, of equal share among the adapters
NUM, LENGTH, ROOM = 10_000, 200_000, 0.2  # adapters, requests, share of all bytes that fit
WARM_UP = 0.1  # of the requests


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """Of the requests after the warm-up: the share that found its adapter, and what the other loads cost.

    cost   MiB that would take as long to read as the loads of a request, on average
    """

    popularity: str
    hit_rate: float
    lru_hit_rate: float
    cost: float
    lru_cost: float


@dataclass(frozen=True, slots=True)
class _Named:
    digest: str


class _Ours:
    def __init__(self, room: int) -> None:
        self._books = Books(Tier.HOST, room, Metrics(), lambda entry: None)

    def has(self, name: str, size: int) -> bool:
        entry = self._books.find(name)
        is_there = entry is not None
        if entry is None:
            assert self._books.make_room(size)
            entry = Entry(cast(Adapter, _Named(name)), size)
            self._books.add(entry)
        self._books.lease(entry)
        self._books.release(entry)
        return is_there


class _LeastRecentlyUsed:
    def __init__(self, room: int) -> None:
        self._room, self._sizes = room, OrderedDict[str, int]()

    def has(self, name: str, size: int) -> bool:
        if name in self._sizes:
            self._sizes.move_to_end(name)
            return True
        while self._room < size:
            self._room += self._sizes.popitem(last=False)[1]
        self._sizes[name] = size
        self._room -= size
        return False


def compare(num: int = NUM, length: int = LENGTH) -> list[PolicyRow]:
    """Replay every popularity through both."""
    sizes = np.random.default_rng(1).choice(SIZES, num)
    room = int(sizes.sum() * ROOM)
    rows = []
    with Progress(transient=True) as bar:
        task = bar.add_task("eviction policies", total=2 * len(POPULARITY))
        for name, draw in POPULARITY.items():
            requests = draw(num, length, np.random.default_rng(2))
            found = []
            for policy in (_Ours(room), _LeastRecentlyUsed(room)):
                found.append(_replay(policy, requests, sizes))
                bar.advance(task)
            [(hits, cost), (lru_hits, lru_cost)] = found
            rows.append(PolicyRow(name, hits, lru_hits, cost, lru_cost))
    return rows


def _replay(policy: Any, requests: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[float, float]:
    names = [str(i) for i in range(len(sizes))]
    skipped, hits, cost = int(len(requests) * WARM_UP), 0, 0.0
    for i, number in enumerate(requests.tolist()):
        size = int(sizes[number])
        is_there = policy.has(names[number], size)
        if i >= skipped:
            hits += is_there
            cost += 0 if is_there else (LOAD_BYTES + size) / MIB
    counted = len(requests) - skipped
    return hits / counted, cost / counted
