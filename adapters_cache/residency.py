"""Who is on the device: slots, leases, eviction. All on the event loop thread; the runner does the copying.

A slot's life: free -> loading (given to a fresh lease, not yet known to be written) -> resident -> free.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from adapters_cache.books import Books, Entry
from server.core import Adapter, SlotLease, Tier
from server.metrics import Metrics
from server.tenants import Tenants


class SlotWriter(Protocol):
    """What owns the device tensors."""

    def slot_bytes(self, adapter: Adapter) -> int: ...
    def free(self, slot: int) -> None: ...


@dataclass(slots=True, eq=False)
class _Slot(Entry):
    """An entry of the books that lies in a slot."""

    index: int = 0
    is_written: bool = False


class _BaseLease:
    """Slot 0: no adapter. Nothing to keep books about."""

    adapter: Adapter | None = None
    slot = 0
    is_fresh = False

    def release(self, *, failed: bool = False) -> None:
        pass

    def __enter__(self) -> _BaseLease:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _Lease:
    """See `server.core.SlotLease`."""

    __slots__ = ("_entry", "_residency", "adapter", "is_fresh", "slot")

    def __init__(self, residency: Residency, entry: _Slot, is_fresh: bool) -> None:
        self._residency, self._entry = residency, entry
        self.adapter: Adapter | None = entry.adapter
        self.slot = entry.index
        self.is_fresh = is_fresh

    def release(self, *, failed: bool = False) -> None:
        self._residency._release(self._entry, self.is_fresh, failed)

    def __enter__(self) -> _Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.release(failed=kind is not None)


class Residency:
    """Gives out leases on device slots under a byte budget."""

    def __init__(self, slots: SlotWriter, budget_bytes: int, metrics: Metrics, tenants: Tenants | None = None) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self._slots = slots
        self._metrics = metrics
        self._books = Books(Tier.DEVICE, budget_bytes, metrics, self._on_gone, tenants=tenants)
        self._by_index: dict[int, _Slot] = {}
        self._free: list[int] = []  # a heap: low numbers are used again first
        self._num_slots = 0
        self._num_leased = 0

    def acquire(self, adapter: Adapter | None) -> SlotLease | None:
        """Lease the slot of `adapter`, placing it if need be; None if there is no room until a lease ends.

        Never waits. Raises TooLarge or Overloaded if the adapter cannot fit however long one waits.
        """
        if adapter is None:
            return _BaseLease()
        entry = self._books.find(adapter.digest)
        is_fresh = entry is None
        if entry is None:
            entry = self._place(adapter)
            if entry is None:
                return None
            self._metrics.cache_miss(Tier.DEVICE)
        else:
            self._metrics.cache_hit(Tier.DEVICE)
        assert isinstance(entry, _Slot)
        self._num_leased += entry.num_leases == 0
        self._books.lease(entry)
        self._report()
        return _Lease(self, entry, is_fresh)

    def slot_bytes(self, adapter: Adapter) -> int:
        """Bytes that `adapter` takes here."""
        return self._slots.slot_bytes(adapter)

    def check_size(self, adapter: Adapter) -> None:
        """Raises TooLarge if the empty device cannot hold it."""
        self._books.check_size(self.slot_bytes(adapter))

    def _place(self, adapter: Adapter) -> _Slot | None:
        size_bytes = self._slots.slot_bytes(adapter)
        self._books.check_fits(size_bytes, adapter.manifest.name)
        if not self._books.make_room(size_bytes):
            return None
        if self._free:
            index = heapq.heappop(self._free)
        else:
            self._num_slots += 1
            index = self._num_slots
        entry = _Slot(adapter, size_bytes, index=index)
        assert index not in self._by_index
        self._by_index[index] = entry
        self._books.add(entry)
        return entry

    def _release(self, entry: _Slot, is_fresh: bool, failed: bool) -> None:
        if failed:
            self._books.doom(entry)
        elif is_fresh:
            entry.is_written = True
        self._num_leased -= entry.num_leases == 1
        self._books.release(entry)
        self._report()
        self.on_room()

    def _on_gone(self, entry: Entry) -> None:
        assert isinstance(entry, _Slot)
        del self._by_index[entry.index]
        heapq.heappush(self._free, entry.index)
        self._slots.free(entry.index)

    def doom(self, digest: str) -> None:
        """Let the copy go as soon as no lease needs it. A new acquire places a new one."""
        if (entry := self._books.find(digest)) is not None:
            self._books.doom(entry)
            self._report()
            self.on_room()

    def expire(self, ttl_s: float) -> None:
        """Let go of what no batch has used for so long."""
        self._books.expire(ttl_s)
        self._report()
        self.on_room()

    def tenants_changed(self) -> None:
        self._books.tenants_changed()
        self._report()

    async def evict(self, digest: str) -> int:
        """Doom every copy and wait until the last lease on them has ended; give the bytes that were freed."""
        entries = self._books.copies(digest)
        self.doom(digest)
        await asyncio.gather(*(entry.gone.wait() for entry in entries))
        return sum(entry.size_bytes for entry in entries)

    def pin(self, digest: str, is_pinned: bool) -> None:
        """Keep `digest` on the device once it is there."""
        self._books.pin(digest, is_pinned)
        if not is_pinned:
            self.on_room()

    @property
    def budget_bytes(self) -> int:
        return self._books.budget_bytes

    @property
    def used_bytes(self) -> int:
        return self._books.used_bytes

    def bytes_of(self, digest: str) -> int:
        """Give the device bytes that an adapter holds; 0 if it is not there."""
        entry = self._books.find(digest)
        return entry.size_bytes if entry else 0

    def _report(self) -> None:
        self._metrics.slots(self._num_leased, len(self._by_index) - self._num_leased)

    def check_integrity(self) -> None:
        """AssertionError unless free + resident + loading make the whole, in slots and in bytes."""
        self._books.check_integrity()
        entries = self._books.entries()
        assert set(map(id, entries)) == set(map(id, self._by_index.values()))
        assert all(index == entry.index for index, entry in self._by_index.items())
        resident = [entry for entry in self._by_index.values() if entry.is_written]
        loading = [entry for entry in self._by_index.values() if not entry.is_written]
        assert len(self._free) + len(resident) + len(loading) == self._num_slots
        assert sorted([*self._free, *self._by_index]) == list(range(1, self._num_slots + 1))
        free_bytes = self._books.budget_bytes - self._books.used_bytes
        assert free_bytes + sum(e.size_bytes for e in [*resident, *loading]) == self._books.budget_bytes
        assert self._num_leased == sum(entry.num_leases > 0 for entry in entries)
        assert all(entry.num_leases > 0 for entry in loading), "nobody is going to write a slot"
