"""The books of one tier, host or device: which adapters it holds, who is using them, which may go.

Counts only: nothing here waits for room or moves a byte. All on the event loop thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from server.core import Adapter, Tier
from server.errors import Overloaded, TooLarge
from server.metrics import Metrics


@dataclass(slots=True, eq=False)
class Entry:
    """One copy of an adapter. Doomed: no new lease finds it, and it goes when the last lease ends."""

    adapter: Adapter
    size_bytes: int
    num_leases: int = 0
    is_doomed: bool = False
    last_used: float = field(default_factory=time.monotonic)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Books:
    """Entries by digest in order of use, least recently used first; doomed entries aside."""

    def __init__(self, tier: Tier, budget_bytes: int, metrics: Metrics, on_gone: Callable[[Entry], None]) -> None:
        self.tier = tier
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._metrics = metrics
        self._on_gone = on_gone
        self._entries: OrderedDict[str, Entry] = OrderedDict()
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

    def check_fits(self, size_bytes: int) -> None:
        """Raises TooLarge if nothing makes room, Overloaded if only unpinning does."""
        self.check_size(size_bytes)
        pinned = sum(self._entries[digest].size_bytes for digest in self._pinned & self._entries.keys())
        if size_bytes > self.budget_bytes - pinned:
            raise Overloaded(
                f"the adapter takes {size_bytes} bytes; {self.tier.value}_bytes is {self.budget_bytes}, of which pinned"
                f" adapters hold {pinned}. Raise {self.tier.value}_bytes or unpin some",
                retry_after_s=5.0,
            )

    def make_room(self, size_bytes: int) -> bool:
        """Evict the least recently used entries until `size_bytes` are free. If that cannot do, evict none."""
        missing = self.used_bytes + size_bytes - self.budget_bytes
        victims = []
        for entry in self._entries.values():
            if missing <= 0:
                break
            if entry.num_leases == 0 and entry.adapter.digest not in self._pinned:
                victims.append(entry)
                missing -= entry.size_bytes
        if missing > 0:
            return False
        for entry in victims:
            self._metrics.eviction(self.tier, time.monotonic() - entry.last_used)
            self.doom(entry)
        return True

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
        self.used_bytes += entry.size_bytes
        self._report()

    def lease(self, entry: Entry) -> None:
        assert not entry.gone.is_set()
        entry.num_leases += 1
        entry.last_used = time.monotonic()
        if not entry.is_doomed:
            self._entries.move_to_end(entry.adapter.digest)

    def release(self, entry: Entry) -> None:
        assert entry.num_leases > 0, "a lease was released twice"
        entry.num_leases -= 1
        entry.last_used = time.monotonic()
        if entry.is_doomed and entry.num_leases == 0:
            self._remove(entry)

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
