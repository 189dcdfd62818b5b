"""The host tier: verified, lowered adapters in memory by digest, under a byte budget. On the event loop thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from adapters_cache.books import Books, Entry
from adapters_cache.reserves import Reserves
from server.core import Adapter, Tier
from server.errors import InvalidInput
from server.metrics import Metrics
from server.tenants import Tenants


class HostLease:
    """See `server.core.HostLease`."""

    __slots__ = ("_books", "_entry", "adapter")

    def __init__(self, books: Books | None = None, entry: Entry | None = None) -> None:
        """Without an entry: the base alone, nothing to release."""
        self._books, self._entry = books, entry
        self.adapter: Adapter | None = entry.adapter if entry else None
        if books and entry:
            books.lease(entry)

    def share(self) -> HostLease:
        """Give another lease on the very same copy, even if that is about to go."""
        assert self._entry is not None, "the lease is released already"
        return HostLease(self._books, self._entry)

    def release(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None and self._books is not None:
            self._books.release(entry)

    def __enter__(self) -> HostLease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class _Shelf(Books):
    """Books that tell when something may have become evictable."""

    def __init__(
        self,
        budget_bytes: int,
        metrics: Metrics,
        on_gone: Callable[[Entry], None],
        reserves: Reserves,
        tenants: Tenants | None,
    ) -> None:
        super().__init__(Tier.HOST, budget_bytes, metrics, on_gone, reserves, tenants)
        self.room = asyncio.Event()

    def release(self, entry: Entry) -> None:
        super().release(entry)
        self.room.set()

    def pin(self, digest: str, is_pinned: bool) -> None:
        super().pin(digest, is_pinned)
        self.room.set()

    def doom(self, entry: Entry) -> None:
        super().doom(entry)
        self.room.set()


class HostTier:
    """Adapters by digest. `on_gone(digest)` is called whenever a copy leaves."""

    def __init__(
        self,
        budget_bytes: int,
        metrics: Metrics,
        on_gone: Callable[[str], None],
        reserves: Sequence[str] = (),
        tenants: Tenants | None = None,
    ) -> None:
        """Raises InvalidInput for reserves that cannot be, or that leave nothing to the others."""
        rules = Reserves(reserves)
        if rules.total_bytes > budget_bytes:
            raise InvalidInput(f"reserves of {rules.total_bytes} bytes are more than host_bytes {budget_bytes}")
        self._books = _Shelf(budget_bytes, metrics, lambda entry: on_gone(entry.adapter.digest), rules, tenants)
        self._putting = asyncio.Lock()  # first come, first served: a large adapter is not overtaken for ever

    def acquire(self, digest: str) -> HostLease | None:
        """Lease an adapter that is here."""
        entry = self._books.find(digest)
        return HostLease(self._books, entry) if entry else None

    def check_size(self, adapter: Adapter) -> None:
        """Raises TooLarge if the whole tier cannot hold it."""
        self._books.check_size(adapter.size_bytes)

    async def put(self, adapter: Adapter) -> HostLease:
        """Take an adapter in, or find its twin, and lease it. Waits while everything that could go is leased.

        Raises TooLarge if it can never fit, Overloaded if pinned adapters are in the way.
        """
        if twin := self.acquire(adapter.digest):  # nothing to wait for, whoever is waiting for room
            return twin
        async with self._putting:
            while (entry := self._books.find(adapter.digest)) is None:
                name = adapter.manifest.name
                self._books.check_fits(adapter.size_bytes, name)
                if self._books.make_room(adapter.size_bytes, name):
                    entry = Entry(adapter, adapter.size_bytes)
                    self._books.add(entry)
                    break
                self._books.room.clear()
                await self._books.room.wait()
            return HostLease(self._books, entry)

    def doom(self, digest: str) -> list[asyncio.Event]:
        """Let an adapter go as soon as no lease needs it; give what tells when each copy is gone."""
        copies = self._books.copies(digest)
        if (entry := self._books.find(digest)) is not None:
            self._books.doom(entry)
        return [copy.gone for copy in copies if not copy.gone.is_set()]

    def expire(self, ttl_s: float) -> None:
        """Let go of what nobody has leased for so long."""
        self._books.expire(ttl_s)

    def tenants_changed(self) -> None:
        self._books.tenants_changed()

    def is_held(self, digest: str) -> bool:
        """Whether any copy is here, be it one that is about to go."""
        return bool(self._books.copies(digest))

    def bytes_of(self, digest: str) -> int:
        entry = self._books.find(digest)
        return entry.size_bytes if entry else 0

    def pin(self, digest: str, is_pinned: bool) -> None:
        self._books.pin(digest, is_pinned)

    @property
    def budget_bytes(self) -> int:
        return self._books.budget_bytes

    @property
    def used_bytes(self) -> int:
        return self._books.used_bytes

    def check_integrity(self) -> None:
        self._books.check_integrity()
