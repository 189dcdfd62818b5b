"""Stage 3: name -> digest -> weights in host memory. Single flight; a slow load delays only those who need it.

The facade over registry, index, origin, disk tier, host tier and device residency. Everything runs on the event loop
thread; files are read in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from adapters_cache import versions
from adapters_cache.disk import DiskTier
from adapters_cache.draft import BaseWeights
from adapters_cache.flight import Flight
from adapters_cache.host import HostLease, HostTier
from adapters_cache.index import Index, restore
from adapters_cache.loader import Loader
from adapters_cache.origin import Listed, Origin
from adapters_cache.pins import check_pin
from adapters_cache.registry import Record, Registry
from adapters_cache.residency import Residency
from adapters_cache.sources import FolderSource, Source
from adapters_cache.versions import Versions
from adapters_cache.watch import Watch
from server.config import CacheConfig
from server.core import BASE, Adapter, AdapterStatus, BaseInfo, Tier, VersionStatus, Wanted
from server.errors import AdapterChanged, AdapterdError, AdapterNotFound, InvalidInput, Unavailable
from server.metrics import Metrics

log = logging.getLogger(__name__)
ALL = Wanted()
Page = tuple[list[AdapterStatus], int]
Check = Callable[[Adapter], Awaitable[None]]


async def _nothing() -> None: ...


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
        self._disk: DiskTier | None = None
        self._index: Index | None = None
        if config.disk_path:
            folder = Path(config.disk_path)
            self._disk = DiskTier(folder, config.disk_bytes, dtype, metrics, pin_memory=pin_memory)
            self._index = Index(folder, base.fingerprint)
        self._origin = Origin(
            config.adapters,
            config.registries,
            max_adapter_bytes=config.max_adapter_bytes,
            max_concurrent_loads=config.max_concurrent_loads,
            load_timeout_s=config.load_timeout_s,
        )
        self._loader = Loader(
            self._origin,
            self._disk,
            self._host,
            residency,
            base,
            dtype,
            max_concurrent_loads=config.max_concurrent_loads,
            timeout_s=config.load_timeout_s,
            weights=weights,
            pin_memory=pin_memory,
        )
        self._flights: dict[tuple[str, str], Flight] = {}  # the newest of each name and version
        self._all_flights: set[Flight] = set()
        self._unloading: Counter[str] = Counter()  # digests whose device bytes an unload is going to count
        self._versioned: set[str] = set()  # names with more than one digest
        self.on_change: Callable[[], Awaitable[None]] = _nothing  # folders hold something new besides adapters, perhaps
        self._watch = Watch(self._origin, self.refresh, config.watch_s)
        self._expiry: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register every adapter that the configured folders hold. Raises InvalidInput for a missing folder.

        Reads no weights: what the index knows of an adapter that is still the same at its origin is taken over.
        """
        for number, folder in enumerate(self._config.adapters, 1):
            if not folder.is_dir():
                raise InvalidInput(
                    f"adapter folder {number} ({folder.name}) is not a folder; create it or leave it out"
                )
        known = await self._index.load() if self._index is not None else {}
        folders = await self._origin.scan()
        self._restore(folders, known)
        registries = {address: await self._listed(address) for address in self._origin.registries}
        for listing in registries.values():
            self._restore(listing, known)
        self._keep()
        self._watch.start(folders, registries)
        if self._config.idle_ttl_s:
            self._expiry = asyncio.create_task(self._expire(self._config.idle_ttl_s))
        pinned = [record for record in self._registry.records() if record.is_pinned]
        for record in pinned:
            self._update_pins(record.digests)
        wanted = {record.name for record in pinned}.union(*map(self._matching, self._config.prefetch))
        self.prefetch(sorted(wanted))

    def _restore(self, listing: Mapping[str, Listed], known: Mapping[str, Any]) -> None:
        """Register names that are new, with what the index knows of what is still the same."""
        for name, listed in listing.items():
            if name in self._registry:
                continue
            record, row = self._registry.register(name, listed.source), known.get(name)
            if row is not None and row["stamp"] == listed.stamp:
                restore(record, row)
                self._registry.point(record, row["digest"], row["shares"])
                self._note_versions(record)

    async def _listed(self, address: str) -> Mapping[str, Listed]:
        """A registry that does not answer is asked again later."""
        try:
            return await self._origin.scan_registry(address)
        except AdapterdError as error:
            log.warning("registry %s: %s", address, error.message)
            return {}

    async def _expire(self, ttl_s: float) -> None:
        while True:
            await asyncio.sleep(ttl_s / 4)
            self._residency.expire(ttl_s)
            self._host.expire(ttl_s)

    def register(self, name: str, source: Path) -> None:
        """Add what lies elsewhere than in a folder of its own under its name. Raises InvalidInput."""
        self._registry.register(name, FolderSource(source))

    async def stop(self) -> None:
        """Give up loads under way. What is leased stays until it is released."""
        await self._watch.stop()
        if self._expiry is not None:
            self._expiry.cancel()
        for flight in list(self._all_flights):
            await flight.cancel()
        if self._index is not None:
            await self._index.close()
        if self._disk is not None:
            self._disk.close()

    async def ready(self, name: str, key: str = "") -> HostLease:
        """Lease an adapter in host memory, loading it if need be; `base` gives a lease without an adapter.

        A name that was loaded stands for that digest until Load moves it: once it has left memory and disk, the origin
        must still hold the same. Where several digests share the requests, equal keys get the same one.
        Raises AdapterNotFound, AdapterRefused and its kinds, Overloaded, Unavailable if the load takes too long.
        """
        if name == BASE:
            return HostLease()
        record = self._registry.get(name)
        record.last_used_at = time.time()
        digest = record.choose(key)
        if digest and (lease := self._host.acquire(digest)):
            self._metrics.cache_hit(Tier.HOST)
            return lease
        self._metrics.cache_miss(Tier.HOST)
        share = digest if digest in record.shares else ""
        flight = self._flights.get((name, share))
        try:
            return await self._join(flight or self._take_off(record, is_explicit=False, share=share))
        except AdapterChanged as error:
            if not share:
                raise
            log.warning("%s; the other versions answer for it", error.message)
            self._lose(record, share)
            return await self.ready(name, key)

    def _lose(self, record: Record, share: str) -> None:
        """A version whose file is gone answers no more."""
        shares = {digest: percent for digest, percent in record.shares.items() if digest != share}
        self._point(record, Versions(record.digest, shares, record.history))

    def prefetch(self, names: Sequence[str]) -> int:
        """Begin to load what is not in host memory; give how many. Raises AdapterNotFound before any is begun."""
        records = [self._registry.get(name) for name in names]
        cold = [
            record
            for record in records
            if (record.name, "") not in self._flights and not (record.digest and self._host.bytes_of(record.digest))
        ]
        for record in cold:
            self._take_off(record, is_explicit=False)
        return len(cold)

    def _matching(self, pattern: str) -> list[str]:
        return [record.name for record in self._registry.records() if fnmatchcase(record.name, pattern)]

    async def _join(self, flight: Flight) -> HostLease:
        shared = await flight.wait()
        return shared.share()

    def _take_off(self, record: Record, *, is_explicit: bool, share: str = "", percent: int = 100) -> Flight:
        """Start reading.

        share    a version beside the one that the name points to; it moves nothing
        percent  of the requests that what is found gets; below 100 it becomes a version beside
        """
        if not share:
            record.generation += 1
        flight = Flight(
            record.generation,
            lambda it: self._load(record, it, percent),
            lambda it: self._land(record, it),
            is_explicit=is_explicit,
            digest=share,
        )
        self._flights[record.name, share] = flight
        self._all_flights.add(flight)
        return flight

    def _land(self, record: Record, flight: Flight) -> None:
        self._all_flights.discard(flight)
        if self._flights.get((record.name, flight.digest)) is flight:
            del self._flights[record.name, flight.digest]

    async def _load(self, record: Record, flight: Flight, percent: int) -> HostLease:
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
        if not flight.digest:
            self._move(record, lease.adapter, flight, percent)
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

    def _move(self, record: Record, adapter: Adapter, flight: Flight, percent: int) -> None:
        """Point a name to what was loaded, unless something newer is there; then nobody will find it again."""
        if flight.generation <= record.served:
            self._forget(adapter.digest)
            return
        record.served = flight.generation
        record.stamp = flight.stamp or record.stamp
        record.loaded_at, record.error = time.time(), ""
        num_kept = self._config.kept_versions if self._disk is not None else 0
        if percent < 100 and record.digest not in ("", adapter.digest):
            self._point(record, versions.shared(record, adapter.digest, percent, num_kept))
            return
        self._describe(record, adapter)
        self._point(record, versions.moved(record, adapter.digest, num_kept))

    def _describe(self, record: Record, adapter: Adapter) -> None:
        """What is known of a name is of the adapter that it points to."""
        head = adapter.spec.head
        record.manifest = replace(adapter.manifest, name=record.name)
        record.sizes = {Tier.HOST: adapter.size_bytes, Tier.DEVICE: self._residency.slot_bytes(adapter)}
        record.task, record.labels = adapter.spec.task.value, head.labels if head else ()
        record.heads = tuple(own.name for own in adapter.spec.all_heads)

    def _point(self, record: Record, wanted: Versions) -> None:
        """Move a name, and let go of what nothing points to any more."""
        dropped = set(record.history) - {wanted.digest, *wanted.shares, *wanted.history}
        changed = self._registry.point(record, wanted.digest, wanted.shares)
        record.history = wanted.history
        self._update_pins(changed)
        self._note_versions(record)
        kept = self._keep()
        for digest in changed | dropped:
            self._forget(digest)
            if self._disk is not None and digest not in kept and not self._registry.is_aliased(digest):
                self._disk.remove(digest)
        if self._index is not None:
            self._index.note(record)

    def _note_versions(self, record: Record) -> None:
        if not record.shares:
            self._metrics.versions_gone(record.name)
        if record.shares or record.history:
            self._versioned.add(record.name)
        else:
            self._versioned.discard(record.name)

    def _keep(self) -> set[str]:
        """Tell the disk tier what no origin may have any more; give every version that is known."""
        records = [self._registry.get(name) for name in self._versioned]
        if self._disk is not None:
            self._disk.keep({digest for record in records for digest in record.digests})
        return {digest for record in records for digest in (*record.digests, *record.history)}

    def _update_pins(self, digests: Iterable[str]) -> None:
        for digest in digests:
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

    async def _find(self, name: str) -> Source | None:
        limit_s = self._config.load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                known = self._registry.get(name).source if name in self._registry else None
                return await self._origin.find(name, known)
        except TimeoutError:
            raise Unavailable(f"load_timeout_s {limit_s:g} went by looking for {name!r}; try again later") from None

    async def load(self, name: str, percent: int = 100) -> tuple[AdapterStatus, str]:
        """Read the origin again and move the name to what is there; give the digest before, empty if there was none.

        percent   of the requests that it gets; below 100 the name stays, and what is there becomes a version beside
        Registers the name if its folder is new. Raises as `ready` does; then the name still points where it did.
        """
        self._check_percent(percent)
        if name == BASE:
            raise InvalidInput(f"{BASE!r} is the base model itself and always loaded")
        if (source := await self._find(name)) is not None:
            self._registry.register(name, source)
        record = self._registry.get(name)
        if source is None:
            raise AdapterNotFound(f"adapter {name!r} is not in any adapter folder any more", adapter=name)
        previous = record.digest
        flight = self._flights.get((name, ""))
        if flight is None or not flight.is_explicit or flight.has_begun or percent < 100:
            self._loader.forget_failure(name)
            flight = self._take_off(record, is_explicit=True, percent=percent)
        (await self._join(flight)).release()
        return self._status(record), previous

    async def unload(self, name: str) -> tuple[int, int, int]:
        """Give back what an adapter holds, once no request needs it; (host, device, disk) bytes that were freed.

        Every version of it goes. The name stays, and the next request reads the origin. What is shared with another
        name stays too.
        """
        record = self._registry.get(name)
        digests, kept = record.digests, {*record.digests, *record.history}
        if not kept:
            return 0, 0, 0
        record.generation += 1  # a load under way serves who waits for it and no one else
        record.served = record.generation
        self._loader.forget_failure(name)
        for key in [key for key in self._flights if key[0] == name]:
            del self._flights[key]
        self._unloading.update(digests)
        try:
            host_bytes = {digest: self._host.bytes_of(digest) for digest in digests}
            disk_bytes = {digest: self._disk.bytes_of(digest) if self._disk is not None else 0 for digest in kept}
            self._point(record, Versions("", {}, ()))
            gone = [digest for digest in digests if not self._registry.is_aliased(digest)]
            for digest in gone:
                for copy in self._host.doom(digest):
                    await copy.wait()
            device_bytes = sum([await self._residency.evict(digest) for digest in gone])
            disk = sum(size for digest, size in disk_bytes.items() if self._disk and digest not in self._disk)
            return sum(host_bytes[digest] for digest in gone), device_bytes, disk
        finally:
            self._unloading -= Counter(digests)  # keeps no zeros
            for digest in digests:
                self._forget(digest)

    async def split(self, name: str, asked: Mapping[str, int]) -> AdapterStatus:
        """Divide the requests for a name among its versions, by digest; 100 percent to one promotes it or goes back.

        Kept on disk when this returns. Raises AdapterNotFound, InvalidInput, and as `ready` does where what the name is
        to point to cannot be loaded; then nothing has changed.
        """
        self._check_percent(0)
        record = self._registry.get(name)
        wanted = versions.split(record, asked, self._config.kept_versions)
        if wanted.digest != record.digest:
            flight = self._take_off(record, is_explicit=False, share=wanted.digest)
            with await self._join(flight) as lease:
                assert lease.adapter is not None
                wanted = versions.split(record, asked, self._config.kept_versions)  # something may have moved
                self._describe(record, lease.adapter)
                self._point(record, wanted)
        else:
            self._point(record, wanted)
        if self._index is not None:
            await self._index.flush()
        return self._status(record)

    def _check_percent(self, percent: int) -> None:
        if percent != 100 and self._disk is None:
            raise InvalidInput(
                "several versions of one adapter need a disk tier: start with --set cache.disk_path=FOLDER"
            )
        if not 0 <= percent <= 100:
            raise InvalidInput(f"percent {percent} is not between 0 and 100")

    async def refresh(self, found: Mapping[str, Listed], gone: Sequence[str]) -> None:
        """Take over what a look at the origins found: adapters that are new or were replaced, and those that left.

        A name that is loaded moves to what is there now as `load` moves it; others are read when they are asked for.
        """
        for name in gone:
            if name in self._registry:
                await self.unload(name)
                self._drop(name)
        for name, listed in found.items():
            record = self._registry.register(name, listed.source)
            if record.digest and record.stamp != listed.stamp:
                try:
                    (await self._join(self._take_off(record, is_explicit=True))).release()
                except AdapterdError as error:
                    log.warning("adapter %s stays as it is: %s", name, error.message)
        await self.on_change()

    def _drop(self, name: str) -> None:
        record = self._registry.get(name)
        if not record.digests:  # nobody asked for it meanwhile
            self._registry.remove(record)
            if self._index is not None:
                self._index.forget(name)

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
        self._update_pins(record.digests)
        if self._index is not None:
            self._index.note(record)

    def list(self, wanted: Wanted = ALL, *, after: str = "", limit: int = 100) -> Page:
        """Give a page of statuses by name, behind the name `after`, and the number of adapters that are wanted."""
        if not (wanted.task or wanted.tier):
            records, total = self._registry.page(wanted.prefix, after, limit)
            return [self._status(record) for record in records], total
        records, _ = self._registry.page(wanted.prefix, "", len(self._registry))
        fitting = [record for record in records if self._fits(record, wanted)]
        return [self._status(record) for record in fitting if record.name > after][:limit], len(fitting)

    def _fits(self, record: Record, wanted: Wanted) -> bool:
        is_of_task = not wanted.task or record.task == wanted.task
        return is_of_task and (wanted.tier is None or self._tier(record.digest) is wanted.tier)

    def is_split(self, name: str) -> bool:
        """Whether several digests answer requests for a name."""
        return name in self._versioned and bool(self._registry.get(name).shares)

    def get(self, name: str) -> AdapterStatus:
        """Raises AdapterNotFound."""
        return self._status(self._registry.get(name))

    def _status(self, record: Record) -> AdapterStatus:
        host_bytes = self._host.bytes_of(record.digest)
        device_bytes = self._residency.bytes_of(record.digest)
        disk_bytes = self._disk.bytes_of(record.digest) if self._disk is not None else 0
        return AdapterStatus(
            name=record.name,
            tier=self._tier(record.digest),
            manifest=record.manifest,
            task=record.task,
            labels=record.labels,
            host_bytes=host_bytes,
            device_bytes=device_bytes,
            disk_bytes=disk_bytes,
            is_pinned=record.is_pinned,
            loaded_at=record.loaded_at,
            last_used_at=record.last_used_at,
            error=record.error,
            heads=record.heads,
            versions=self._versions(record),
        )

    def _tier(self, digest: str) -> Tier:
        """The nearest one that holds it."""
        if self._residency.bytes_of(digest):
            return Tier.DEVICE
        if self._host.bytes_of(digest):
            return Tier.HOST
        return Tier.DISK if self._disk is not None and digest in self._disk else Tier.ORIGIN

    def _versions(self, record: Record) -> tuple[VersionStatus, ...]:
        """Of a name that has several, the one that it points to first."""
        if record.name not in self._versioned:
            return ()
        percents = {
            record.digest: 100 - sum(record.shares.values()),
            **record.shares,
            **dict.fromkeys(record.history, 0),
        }
        return tuple(VersionStatus(digest, percent, self._tier(digest)) for digest, percent in percents.items())

    def check_integrity(self) -> None:
        """AssertionError when the books of the host or the device do not balance."""
        self._host.check_integrity()
        self._residency.check_integrity()
        assert set(self._flights.values()) <= self._all_flights
