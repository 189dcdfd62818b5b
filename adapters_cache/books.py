"""The books of one tier, host or device: which adapters it holds, who is using them, which may go.

What goes first is what costs least to bring back for what it takes: Greedy-Dual-Size-Frequency (Cherkasova 1998,
HPL-98-69). An entry's priority is the priority of the last one that went, plus its uses times cost over size; so what
was popular once ages, a scan of everything passes by what is in use, and small adapters stay longer than large ones.
docs/structures.md has how it compares with the least recently used one first.

Counts only: nothing here waits for room or moves a byte. All on the event loop thread.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from adapters_cache.quotas import Quotas
from adapters_cache.reserves import Reserves
from server.core import Adapter, Tier
from server.errors import Overloaded, TooLarge
from server.metrics import Metrics
from server.tenants import Tenants

LOAD_BYTES = 1 << 20  # a load takes as long as it would take to read so many bytes more
MAX_LEFT_OVER = 64
Place = tuple[float, float]  # in the order of going: priority, then time of the last use


@dataclass(slots=True, eq=False)
class Entry:
    """One copy of an adapter. Doomed: no new lease finds it, and it goes when the last lease ends."""

    adapter: Adapter
    size_bytes: int
    num_leases: int = 0
    num_uses: int = 0
    priority: float = 0.0
    queued: int = 0
    group: str = ""  # whose reserve it counts to
    owner: str = ""  # the tenant whose limit it counts to
    is_doomed: bool = False
    last_used: float = field(default_factory=time.monotonic)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def place(self) -> Place:
        return self.priority, self.last_used


class Books:
    """Entries by digest; doomed entries aside."""

    def __init__(
        self,
        tier: Tier,
        budget_bytes: int,
        metrics: Metrics,
        on_gone: Callable[[Entry], None],
        reserves: Reserves | None = None,
        tenants: Tenants | None = None,
    ) -> None:
        self._reserves = reserves or Reserves()
        self._quotas = Quotas(tier, tenants)
        self.tier = tier
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._metrics = metrics
        self._on_gone = on_gone
        self._entries: dict[str, Entry] = {}
        # A heap of digests. Each live entry is in it once, at the place that it had when it was put here: uses only
        # move it towards the end, so its true place is looked up when it comes to the front. Others are left-overs;
        # digests, so that none keeps an adapter in memory.
        self._order: list[tuple[Place, int, str]] = []
        self._floor = 0.0  # priority of the last one that went
        self._num_queued = 0
        self._doomed: set[Entry] = set()
        self._pinned: set[str] = set()
        metrics.tier_budget(tier, budget_bytes)
        self._report()

    def __len__(self) -> int:
        return len(self._entries) + len(self._doomed)

    def find(self, digest: str) -> Entry | None:
        return self._entries.get(digest)

    def entries(self) -> list[Entry]:
        return [*self._entries.values(), *self._doomed]

    def copies(self, digest: str) -> list[Entry]:
        """Give the live and the doomed copies of an adapter."""
        live = self._entries.get(digest)
        doomed = [entry for entry in self._doomed if entry.adapter.digest == digest]
        return [live, *doomed] if live else doomed

    def check_size(self, size_bytes: int) -> None:
        """Raises TooLarge for what does not fit into the empty tier."""
        if size_bytes > self.budget_bytes:
            name = f"{self.tier.value}_bytes"
            raise TooLarge(
                f"the adapter takes {size_bytes} bytes; {name} is {self.budget_bytes}. Raise {name} to serve it"
            )

    def check_fits(self, size_bytes: int, name: str = "") -> None:
        """Raises TooLarge if nothing makes room for an adapter of this name, Overloaded if only unpinning does."""
        self.check_size(size_bytes)
        self._quotas.check(name, size_bytes)
        pinned = sum(self._entries[digest].size_bytes for digest in self._pinned & self._entries.keys())
        reserved = self._reserves.kept_from(self._reserves.group_of(name))
        if size_bytes > self.budget_bytes - max(pinned, reserved):  # what is pinned may be reserved too
            raise Overloaded(
                f"the adapter takes {size_bytes} bytes; {self.tier.value}_bytes is {self.budget_bytes}, of which pinned"
                f" adapters hold {pinned} and reserves of others {reserved}. Raise {self.tier.value}_bytes, unpin some"
                " or reserve less",
                retry_after_s=5.0,
            )

    def make_room(self, size_bytes: int, name: str = "") -> bool:
        """Evict entries until `size_bytes` are free for an adapter of this name. If that cannot do, evict none."""
        missing = self.used_bytes + size_bytes - self.budget_bytes
        own = self._reserves.group_of(name) if missing > 0 else ""
        taken: Counter[str] = Counter()
        victims: list[Entry] = []
        others: list[Entry] = []
        while missing > 0 and self._order:
            place, number, digest = heapq.heappop(self._order)
            entry = self._entries.get(digest)
            if entry is None or entry.queued != number:
                continue
            if entry.place != place:
                self._queue(entry)
            elif (
                entry.num_leases
                or entry.adapter.digest in self._pinned
                or entry.group != own
                and not self._reserves.spares(entry.group, taken[entry.group] + entry.size_bytes)
            ):
                others.append(entry)
            else:
                victims.append(entry)
                taken[entry.group] += entry.size_bytes
                missing -= entry.size_bytes
        if missing > 0:
            others += victims
            victims = []
        for entry in others:
            self._queue(entry)
        for entry in victims:
            self._evict(entry)
        return missing <= 0

    def _evict(self, entry: Entry) -> None:
        self._floor = max(self._floor, entry.priority)
        self._metrics.eviction(self.tier, time.monotonic() - entry.last_used)
        self.doom(entry)

    def _trim(self, owner: str, spared: Entry | None = None) -> None:
        """Evict what a tenant holds beyond its limit and nobody uses."""
        if (excess := self._quotas.excess(owner)) == 0:
            return
        idle = [
            entry
            for digest, entry in self._entries.items()
            if entry.owner == owner and entry.num_leases == 0 and digest not in self._pinned and entry is not spared
        ]
        for entry in sorted(idle, key=lambda entry: entry.place):
            if excess <= 0:
                return
            excess -= entry.size_bytes
            self._evict(entry)

    def tenants_changed(self) -> None:
        """Adapters may have another owner, and owners another limit."""
        self._quotas.clear()
        for entry in self.entries():
            entry.owner = self._quotas.owner_of(entry.adapter.manifest.name)
            self._quotas.note(entry.owner, entry.size_bytes)
        for owner in {entry.owner for entry in self._entries.values()}:
            self._trim(owner)

    def _queue(self, entry: Entry) -> None:
        self._num_queued += 1
        entry.queued = self._num_queued
        heapq.heappush(self._order, (entry.place, entry.queued, entry.adapter.digest))

    def _tidy(self) -> None:
        """Drop what is left over of entries that went."""
        if len(self._order) > 2 * len(self._entries) + MAX_LEFT_OVER:
            self._order = [(own.place, own.queued, digest) for digest, own in self._entries.items()]
            heapq.heapify(self._order)

    def expire(self, ttl_s: float) -> None:
        """Let go of what nobody has leased for so long."""
        now = time.monotonic()
        idle = [
            entry
            for digest, entry in self._entries.items()
            if entry.num_leases == 0 and digest not in self._pinned and now - entry.last_used >= ttl_s
        ]
        for entry in idle:
            self._metrics.eviction(self.tier, now - entry.last_used)
            self.doom(entry)

    def add(self, entry: Entry) -> None:
        """Enter a new copy. There must be room and no live copy."""
        assert entry.adapter.digest not in self._entries and self.used_bytes + entry.size_bytes <= self.budget_bytes
        self._entries[entry.adapter.digest] = entry
        if self._reserves:
            entry.group = self._reserves.group_of(entry.adapter.manifest.name)
            self._reserves.note(entry.group, entry.size_bytes)
        if self._quotas:
            entry.owner = self._quotas.owner_of(entry.adapter.manifest.name)
            self._quotas.note(entry.owner, entry.size_bytes)
        self._queue(entry)
        self._tidy()
        self.used_bytes += entry.size_bytes
        self._trim(entry.owner, spared=entry)
        self._report()

    def lease(self, entry: Entry) -> None:
        assert not entry.gone.is_set()
        entry.num_leases += 1
        entry.num_uses += 1
        entry.last_used = time.monotonic()
        entry.priority = self._floor + entry.num_uses * (1 + LOAD_BYTES / max(1, entry.size_bytes))

    def release(self, entry: Entry) -> None:
        assert entry.num_leases > 0, "a lease was released twice"
        entry.num_leases -= 1
        entry.last_used = time.monotonic()
        if entry.is_doomed and entry.num_leases == 0:
            self._remove(entry)
        elif entry.owner:
            self._trim(entry.owner)

    def doom(self, entry: Entry) -> None:
        if entry.is_doomed:
            return
        entry.is_doomed = True
        del self._entries[entry.adapter.digest]
        self._doomed.add(entry)
        if entry.num_leases == 0:
            self._remove(entry)

    def pin(self, digest: str, is_pinned: bool) -> None:
        """Keep `digest` from eviction, now and whenever it comes back."""
        if is_pinned:
            self._pinned.add(digest)
        else:
            self._pinned.discard(digest)

    def _remove(self, entry: Entry) -> None:
        self._doomed.remove(entry)
        self._reserves.note(entry.group, -entry.size_bytes)
        self._quotas.note(entry.owner, -entry.size_bytes)
        self.used_bytes -= entry.size_bytes
        self._report()
        self._on_gone(entry)
        entry.gone.set()

    def _report(self) -> None:
        self._metrics.tier_bytes(self.tier, self.used_bytes)
        self._metrics.tier_adapters(self.tier, len(self))

    def check_integrity(self) -> None:
        """AssertionError when the books do not balance."""
        entries = self.entries()
        assert self.used_bytes == sum(entry.size_bytes for entry in entries)
        assert 0 <= self.used_bytes <= self.budget_bytes
        assert all(digest == entry.adapter.digest for digest, entry in self._entries.items())
        assert not any(entry.is_doomed or entry.num_leases < 0 for entry in self._entries.values())
        assert all(entry.is_doomed and entry.num_leases > 0 for entry in self._doomed)
        assert not any(entry.gone.is_set() for entry in entries)
        queued = {(digest, number) for _, number, digest in self._order}
        assert all((digest, entry.queued) in queued for digest, entry in self._entries.items())
