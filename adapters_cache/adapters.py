"""Stage 3: name -> digest -> weights in host memory. Single flight; a slow load delays only those who need it.

The facade over registry, origin, host tier and device residency. Everything runs on the event loop thread; files are
read in the origin's threads.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import torch

from adapters_cache.draft import BaseWeights
from adapters_cache.flight import Flight
from adapters_cache.host import HostLease, HostTier
from adapters_cache.loader import Loader
from adapters_cache.origin import FolderOrigin
from adapters_cache.pins import check_pin
from adapters_cache.registry import Record, Registry
from adapters_cache.residency import Residency
from server.config import CacheConfig
from server.core import BASE, Adapter, AdapterStatus, BaseInfo, Tier
from server.errors import AdapterdError, AdapterNotFound, InvalidInput, Unavailable
from server.metrics import Metrics

Page = tuple[list[AdapterStatus], int]
Check = Callable[[Adapter], Awaitable[None]]


class Adapters:
    """Which adapters there are, and each of them ready when asked for."""

    def __init__(
        self,
        config: CacheConfig,
        base: BaseInfo,
        dtype: torch.dtype,
        residency: Residency,
        metrics: Metrics,
        *,
        weights: BaseWeights | None = None,
        pin_memory: bool = False,
        check: Check | None = None,
    ) -> None:
        """
        weights   the base's own, which some methods are lowered with
        check     proves an adapter before its name moves to it, or raises
        """
        self._check = check
        self._config = config
        self._residency = residency
        self._metrics = metrics
        self._registry = Registry()
        self._host = HostTier(config.host_bytes, metrics, self._on_host_gone)
        self._origin = FolderOrigin(
            config.adapters,
            max_adapter_bytes=config.max_adapter_bytes,
            max_concurrent_loads=config.max_concurrent_loads,
            load_timeout_s=config.load_timeout_s,
        )
        self._loader = Loader(
            self._origin,
            self._host,
            residency,
            base,
            dtype,
            timeout_s=config.load_timeout_s,
            weights=weights,
            pin_memory=pin_memory,
        )
        self._flights: dict[str, Flight] = {}  # the newest of each name
        self._all_flights: set[Flight] = set()
        self._unloading: Counter[str] = Counter()  # digests whose device bytes an unload is going to count

    async def start(self) -> None:
        """Register every adapter that the configured folders hold. Raises InvalidInput for a missing folder."""
        for number, folder in enumerate(self._config.adapters, 1):
            if not folder.is_dir():
                raise InvalidInput(
                    f"adapter folder {number} ({folder.name}) is not a folder; create it or leave it out"
                )
        for name, source in (await self._origin.scan()).items():
            self._registry.register(name, source)

    def register(self, name: str, source: Path) -> None:
        """Add what lies elsewhere than in a folder of its own under its name. Raises InvalidInput."""
        self._registry.register(name, source)

    async def stop(self) -> None:
        """Give up loads under way. What is leased stays until it is released."""
        for flight in list(self._all_flights):
            await flight.cancel()
        self._origin.close()

    async def ready(self, name: str) -> HostLease:
        """Lease an adapter in host memory, loading it if need be; `base` gives a lease without an adapter.

        A name that was loaded stands for that digest until Load moves it: once it has left host memory, the origin must
        still hold the same. Raises AdapterNotFound, AdapterRefused and its kinds, Overloaded, Unavailable if the load
        takes too long.
        """
        if name == BASE:
            return HostLease()
        record = self._registry.get(name)
        record.last_used_at = time.time()
        if record.digest and (lease := self._host.acquire(record.digest)):
            self._metrics.cache_hit(Tier.HOST)
            return lease
        self._metrics.cache_miss(Tier.HOST)
        return await self._join(self._flights.get(name) or self._take_off(record, is_explicit=False))

    async def _join(self, flight: Flight) -> HostLease:
        shared = await flight.wait()
        return shared.share()

    def _take_off(self, record: Record, *, is_explicit: bool) -> Flight:
        """Start reading the origin."""
        record.generation += 1
        flight = Flight(
            record.generation,
            lambda it: self._load(record, it),
            lambda it: self._land(record, it),
            is_explicit=is_explicit,
        )
        self._flights[record.name] = flight
        self._all_flights.add(flight)
        return flight

    def _land(self, record: Record, flight: Flight) -> None:
        self._all_flights.discard(flight)
        if self._flights.get(record.name) is flight:
            del self._flights[record.name]

    async def _load(self, record: Record, flight: Flight) -> HostLease:
        """Take an adapter into the host tier and move the name to it."""
        started, outcome = time.monotonic(), "CANCELLED"
        try:
            lease = await self._loader.load(record, flight)
            await self._prove(lease)
            outcome = "ok"
        except AdapterdError as error:
            outcome = error.reason
            if flight.generation > record.served:
                record.error = error.message
            raise
        finally:
            self._metrics.load_done(Tier.HOST, time.monotonic() - started, outcome)
        assert lease.adapter is not None
        self._move(record, lease.adapter, flight.generation)
        return lease

    async def _prove(self, lease: HostLease) -> None:
        """Let the check, if there is one, try what was loaded. An adapter that does not pass it is dropped."""
        if self._check is None or lease.adapter is None:
            return
        try:
            await self._check(lease.adapter)
        except BaseException:
            lease.release()
            self._forget(lease.adapter.digest)
            raise

    def _move(self, record: Record, adapter: Adapter, generation: int) -> None:
        """Point a name to what was loaded, unless something newer is there; then nobody will find it again."""
        if generation <= record.served:
            self._forget(adapter.digest)
            return
        head = adapter.spec.head
        record.served = generation
        record.manifest = replace(adapter.manifest, name=record.name)
        record.sizes = {Tier.HOST: adapter.size_bytes, Tier.DEVICE: self._residency.slot_bytes(adapter)}
        record.task, record.labels = adapter.spec.task.value, head.labels if head else ()
        record.heads = tuple(own.name for own in adapter.spec.all_heads)
        record.loaded_at, record.error = time.time(), ""
        self._point(record, adapter.digest)

    def _point(self, record: Record, digest: str) -> None:
        previous = self._registry.point(record, digest)
        for moved in {previous, digest} - {""}:
            self._update_pin(moved)
        if previous and previous != digest:
            self._forget(previous)

    def _update_pin(self, digest: str) -> None:
        is_pinned = self._registry.is_pinned(digest)
        self._host.pin(digest, is_pinned)
        self._residency.pin(digest, is_pinned)

    def _forget(self, digest: str) -> None:
        """Drop a digest that no name points to: on the host once no request needs it, then on the device."""
        if not self._registry.is_aliased(digest):
            self._host.doom(digest)
            self._on_host_gone(digest)

    def _on_host_gone(self, digest: str) -> None:
        # a request holds its host lease until it is answered, so from now on nobody places this digest on the device
        if not (self._registry.is_aliased(digest) or self._host.is_held(digest) or self._unloading[digest]):
            self._residency.doom(digest)

    async def _find(self, name: str) -> Path | None:
        limit_s = self._config.load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._origin.find(name)
        except TimeoutError:
            raise Unavailable(f"load_timeout_s {limit_s:g} went by looking for {name!r}; try again later") from None

    async def load(self, name: str) -> tuple[AdapterStatus, str]:
        """Read the origin again and move the name to what is there; give the digest before, empty if there was none.

        Registers the name if its folder is new. Raises as `ready` does; then the name still points where it did.
        """
        if name == BASE:
            raise InvalidInput(f"{BASE!r} is the base model itself and always loaded")
        if (source := await self._find(name)) is not None:
            self._registry.register(name, source)
        record = self._registry.get(name)
        if source is None:
            raise AdapterNotFound(f"adapter {name!r} is not in any adapter folder any more", adapter=name)
        previous = record.digest
        flight = self._flights.get(name)
        if flight is None or not flight.is_explicit or flight.has_begun:
            self._loader.forget_failure(name)
            flight = self._take_off(record, is_explicit=True)
        (await self._join(flight)).release()
        return self._status(record), previous

    async def unload(self, name: str) -> tuple[int, int]:
        """Give back what an adapter holds, once no request needs it; (host bytes, device bytes) that were freed.

        The name stays, and the next request reads the origin. Memory shared with another name stays too.
        """
        record = self._registry.get(name)
        digest = record.digest
        if not digest:
            return 0, 0
        record.generation += 1  # a load under way serves who waits for it and no one else
        record.served = record.generation
        self._loader.forget_failure(name)
        self._flights.pop(name, None)
        self._unloading[digest] += 1
        try:
            host_bytes = self._host.bytes_of(digest)
            self._point(record, "")
            if self._registry.is_aliased(digest):
                return 0, 0
            for gone in self._host.doom(digest):
                await gone.wait()
            return host_bytes, await self._residency.evict(digest)
        finally:
            self._unloading -= Counter([digest])  # keeps no zeros
            self._forget(digest)

    async def pin(self, name: str, is_pinned: bool) -> AdapterStatus:
        """Keep an adapter in host memory, and on the device from its first use on; loads it. Or let it go again.

        Raises as `ready` does, and Overloaded if the pinned adapters would leave too little to the others.
        """
        record = self._registry.get(name)
        lease = await self.ready(name) if is_pinned else None
        try:
            if is_pinned and not record.is_pinned:
                budgets = {Tier.HOST: self._host.budget_bytes, Tier.DEVICE: self._residency.budget_bytes}
                check_pin(record, self._registry.records(), budgets)
            self._set_pin(record, is_pinned)
        finally:
            if lease is not None:
                lease.release()
        return self._status(record)

    def _set_pin(self, record: Record, is_pinned: bool) -> None:
        record.is_pinned = is_pinned
        if record.digest:
            self._update_pin(record.digest)

    def list(self, *, prefix: str = "", after: str = "", limit: int = 100) -> Page:
        """Give a page of statuses by name, and the number of names that start with `prefix`."""
        records, total = self._registry.page(prefix, after, limit)
        return [self._status(record) for record in records], total

    def get(self, name: str) -> AdapterStatus:
        """Raises AdapterNotFound."""
        return self._status(self._registry.get(name))

    def _status(self, record: Record) -> AdapterStatus:
        host_bytes = self._host.bytes_of(record.digest)
        device_bytes = self._residency.bytes_of(record.digest)
        tier = Tier.DEVICE if device_bytes else Tier.HOST if host_bytes else Tier.ORIGIN
        return AdapterStatus(
            name=record.name,
            tier=tier,
            manifest=record.manifest,
            task=record.task,
            labels=record.labels,
            host_bytes=host_bytes,
            device_bytes=device_bytes,
            is_pinned=record.is_pinned,
            loaded_at=record.loaded_at,
            last_used_at=record.last_used_at,
            error=record.error,
            heads=record.heads,
        )

    def check_integrity(self) -> None:
        """AssertionError when the books of the host or the device do not balance."""
        self._host.check_integrity()
        self._residency.check_integrity()
        assert set(self._flights.values()) <= self._all_flights
