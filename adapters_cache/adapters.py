"""Stage 3: name -> digest -> weights in host memory. Single flight; a slow load delays only those who need it.

The facade over registry, index, origin, disk tier, host tier and device residency. Everything runs on the event loop
thread; files are read in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapters_cache import versions
from adapters_cache.disk import DiskTier
from adapters_cache.draft import BaseWeights
from adapters_cache.flight import Flight
from adapters_cache.following import Following
from adapters_cache.host import HostLease, HostTier
from adapters_cache.index import Index, restore
from adapters_cache.loader import Loader
from adapters_cache.origin import Listed, Listing, Origin
from adapters_cache.pins import check_pin, check_tenant_pin
from adapters_cache.pointing import Pointing
from adapters_cache.prefetch import Prefetcher
from adapters_cache.registry import Record, Registry
from adapters_cache.residency import Residency
from adapters_cache.sources import FolderSource, Source
from adapters_cache.statuses import Page, Statuses, card_of
from adapters_cache.version_files import VersionFiles
from adapters_cache.versions import Versions
from adapters_cache.watch import News, Watch
from server.config import CacheConfig
from server.core import BASE, Adapter, AdapterStatus, BaseInfo, Tier, Wanted
from server.errors import (
    AdapterChanged,
    AdapterdError,
    AdapterNotFound,
    AdapterRefused,
    InvalidInput,
    Unavailable,
)
from server.metrics import Metrics
from server.tenants import Tenants

log = logging.getLogger(__name__)
ALL = Wanted()
LOAD = "load"  # the flights that Load takes off, beside those by digest
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
        tenants: Tenants | None = None,
        has_replicas: bool = False,
        shared: Path | None = None,
    ) -> None:
        """
        weights       the base's own, which some methods are lowered with
        check         proves an adapter before its name moves to it, or raises
        tenants       whose limits of bytes and pins count
        has_replicas  other servers have the same names, which move together
        shared        of the configured folders, the one that those share and where adapters are published
        """
        self._tenants = tenants or Tenants()
        self._check = check
        self._config = config
        self._residency = residency
        self._metrics = metrics
        self._registry = Registry()
        self._host = HostTier(
            config.host_bytes, metrics, lambda digest: self._pointing.on_host_gone(digest), config.reserve, tenants
        )
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
            versions=VersionFiles(shared) if has_replicas and shared else None,
        )
        self._pointing = Pointing(
            self._registry, self._host, self._disk, residency, self._index, metrics, self._tenants, config
        )
        self._has_replicas = has_replicas
        self._following: Following | None = None
        if has_replicas and shared:
            self._following = Following(shared, self._registry, self._pointing, self._host, self, metrics)
        self._statuses = Statuses(self._registry, self._disk, self._host, residency)
        self._prefetcher = Prefetcher(self._bring, max(1, config.max_concurrent_loads // 2))
        self._flights: dict[tuple[str, str], Flight] = {}  # the newest of each name and version, and of each Load
        self._all_flights: set[Flight] = set()
        self._loads: Counter[str] = Counter()  # calls of Load under way, by name
        self._rows: dict[str, Mapping[str, Any]] = {}  # of the index, that no origin has shown again so far
        self.on_change: Callable[[], Awaitable[None]] = _nothing  # folders hold other compositions than before
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
        self._rows = dict(await self._index.load()) if self._index is not None else {}
        listings = {place: await self._listed(place) for place in self._origin.places}
        for place, listing in listings.items():
            if listing is None:
                self._restore_unseen(place)
            for name, listed in listing.adapters.items() if listing is not None else ():
                if name not in self._registry:
                    self._register(name, listed)
        self._forget_rows({place for place, listing in listings.items() if listing is None})
        if self._following is not None:
            listed_there = (listings[str(self._following.folder)] or Listing()).adapters
            await self._following.start({name: listed.stamp for name, listed in listed_there.items()})
        if self._disk is not None:
            self._disk.keep(self._pointing.history.answering)
        self._watch.start({place: listing or Listing() for place, listing in listings.items()})
        if self._config.idle_ttl_s:
            self._expiry = asyncio.create_task(self._expire(self._config.idle_ttl_s))
        pinned = [record.name for record in self._registry.records() if record.is_pinned]
        self.prefetch(sorted({*pinned}.union(*map(self._matching, self._config.prefetch))))

    async def _listed(self, place: str) -> Listing | None:
        """None for a registry that does not answer, which is asked again later."""
        try:
            async with asyncio.timeout(self._config.load_timeout_s):
                return await self._origin.scan(place)
        except TimeoutError:
            log.warning("origin %s did not answer within load_timeout_s; it is asked again", place)
        except (AdapterdError, OSError) as error:
            log.warning("origin %s cannot be listed: %s", place, error)
        return None

    def _register(self, name: str, listed: Listed) -> None:
        """A name that is new here, with what the index knows of it."""
        record, row = self._registry.register(name, listed.source), self._rows.pop(name, None)
        if row is not None:
            self._registry.point(record, *restore(record, row, listed.stamp))
            self._pointing.update_pins(record.digests)
            self._pointing.note_versions(record)

    def _restore_unseen(self, place: str) -> None:
        """What the index knows of a registry that does not answer now: what is on disk is served."""
        for name, row in list(self._rows.items()):
            source = self._origin.known_source(place, name, row["stamp"]) if row.get("place") == place else None
            if source is not None and name not in self._registry:
                self._register(name, Listed(source, row["stamp"]))

    def _forget_rows(self, silent: Collection[str]) -> None:
        """Of names that are gone: but for members of setups, which are registered later, and for silent places."""
        for name, row in list(self._rows.items()):
            if self._index is not None and "/" not in name and row.get("place") not in silent:
                self._index.forget(name)
                del self._rows[name]

    async def _expire(self, ttl_s: float) -> None:
        while True:
            await asyncio.sleep(ttl_s / 4)
            self._residency.expire(ttl_s)
            self._host.expire(ttl_s)

    def register(self, name: str, source: Path) -> None:
        """Add what lies elsewhere than in a folder of its own under its name. Raises InvalidInput."""
        found = FolderSource(source)
        if name in self._registry:
            self._registry.register(name, found)
        else:
            self._register(name, Listed(found, found.stamp()))

    async def stop(self) -> None:
        """Give up loads under way. What is leased stays until it is released."""
        await self._watch.stop()
        if self._following is not None:
            await self._following.stop()
        if self._expiry is not None:
            self._expiry.cancel()
        self._prefetcher.stop()
        for flight in list(self._all_flights):
            await flight.cancel()
        if self._index is not None:
            await self._index.close()
        if self._disk is not None:
            self._disk.close()

    async def ready(self, name: str, key: str = "", version: str = "") -> HostLease:
        """Lease an adapter in host memory, loading it if need be; `base` gives a lease without an adapter.

        A name that was loaded stands for that digest until Load moves it: once it has left memory and disk, the origin
        must still hold the same. Where several digests share the requests, equal keys get the same one. `version` is
        the first digits of one that answers; of a name that is not loaded yet the caller has to check it.
        Raises AdapterNotFound, AdapterRefused and its kinds, Overloaded, Unavailable if the load takes too long.
        """
        if name == BASE:
            return HostLease()
        record = self._registry.get(name)
        record.last_used_at = time.time()
        digest = record.choose(key, version)
        if digest and (lease := self._host.acquire(digest)):
            self._metrics.cache_hit(Tier.HOST)
            return lease
        self._metrics.cache_miss(Tier.HOST)
        if digest in record.shares:
            return await self._ready_share(record, digest, key)
        try:
            return await self._join(self._flight_of(record))
        except (AdapterChanged, Unavailable):
            # its files may be gone, for another replica has moved the name a moment ago
            if self._following is None or not await self._following.has_moved(record, digest):
                raise
        return await self.ready(name, key, version)

    def _flight_of(self, record: Record) -> Flight:
        """What brings the adapter that a name points to: a Load that is under way does where nothing else can."""
        if (flight := self._flights.get((record.name, ""))) is not None:
            return flight
        loading = self._flights.get((record.name, LOAD))
        is_on_disk = self._disk is not None and bool(record.digest) and record.digest in self._disk
        if loading is not None and loading.percent == 100 and not is_on_disk:
            return loading
        return self._take_off(record)

    async def _ready_share(self, record: Record, share: str, key: str) -> HostLease:
        try:
            return await self._join(self._flights.get((record.name, share)) or self._take_off(record, share))
        except AdapterChanged as error:
            log.warning("%s; the other versions answer for it", error.message)
        if share in record.shares:
            shares = {digest: percent for digest, percent in record.shares.items() if digest != share}
            self._pointing.point(record, Versions(record.digest, shares, record.history))
            if self._following is not None:
                self._following.again(record.name)
        return await self.ready(record.name, key)

    def prefetch(self, names: Sequence[str]) -> int:
        """Have what is not in host memory loaded, a few at a time, behind those who wait; give how many that are.

        Raises AdapterNotFound before any is begun.
        """
        records = [self._registry.get(name) for name in names]
        cold = [record.name for record in records if self._is_cold(record) and record.name not in self._prefetcher]
        self._prefetcher.add(cold)
        return len(cold)

    async def _bring(self, name: str) -> None:
        record = self._registry.find(name)
        if record is not None and self._is_cold(record):
            with suppress(AdapterdError):  # whoever asks for it is told
                (await self._join(self._flight_of(record))).release()

    def _is_cold(self, record: Record) -> bool:
        is_there = bool(record.digest) and self._host.bytes_of(record.digest) > 0
        return not is_there and (record.name, "") not in self._flights

    def _matching(self, pattern: str) -> list[str]:
        return [record.name for record in self._registry.records() if fnmatchcase(record.name, pattern)]

    async def _join(self, flight: Flight) -> HostLease:
        shared = await flight.wait()
        return shared.share()

    def _take_off(self, record: Record, share: str = "") -> Flight:
        """Bring what a name points to, or a version beside; it moves no name but one that points to nothing."""
        return self._start(
            record,
            share,
            Flight(
                record.generation,
                lambda it: self._load(record, it),
                lambda it: self._land(record, share, it),
                is_explicit=False,
                digest=share,
            ),
        )

    def _take_off_load(self, record: Record, percent: int = 100) -> Flight:
        """Read the origin, and move the name to what is there, or have that beside for so many percent."""
        record.generation += 1
        return self._start(
            record,
            LOAD,
            Flight(
                record.generation,
                lambda it: self._load(record, it),
                lambda it: self._land(record, LOAD, it),
                is_explicit=True,
                percent=percent,
            ),
        )

    def _start(self, record: Record, kind: str, flight: Flight) -> Flight:
        self._flights[record.name, kind] = flight
        self._all_flights.add(flight)
        return flight

    def _land(self, record: Record, kind: str, flight: Flight) -> None:
        self._all_flights.discard(flight)
        if self._flights.get((record.name, kind)) is flight:
            del self._flights[record.name, kind]

    async def _load(self, record: Record, flight: Flight) -> HostLease:
        """Take an adapter into the host tier and move the name to it."""
        started, outcome = time.monotonic(), "CANCELLED"
        try:
            lease = await self._loader.load(record, flight)
            await self._prove(lease)
            outcome = "ok"
        except AdapterdError as error:
            outcome = error.reason
            if not flight.is_overtaken(record.served):
                record.error = error.message
            raise
        finally:
            self._metrics.load_done(Tier.HOST, time.monotonic() - started, outcome)
        try:
            assert lease.adapter is not None
            if flight.digest and flight.digest not in self._pointing.history.known:
                self._pointing.discard(flight.digest)
            elif not flight.digest:
                self._pointing.move(record, lease.adapter, flight)
        except BaseException:
            lease.release()
            raise
        return lease

    async def _prove(self, lease: HostLease) -> None:
        """Let the check, if there is one, try what was loaded. An adapter that does not pass it is dropped."""
        if self._check is None or lease.adapter is None:
            return
        try:
            await self._check(lease.adapter)
        except BaseException:
            lease.release()
            self._pointing.discard(lease.adapter.digest)
            raise

    async def find_source(self, name: str) -> Source | None:
        """Where an adapter lies. Raises AdapterdError where a place does not answer."""
        limit_s = self._config.load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._origin.find(name)
        except TimeoutError:
            raise Unavailable(f"load_timeout_s {limit_s:g} went by looking for {name!r}; try again later") from None

    async def load(self, name: str, percent: int = 100) -> tuple[AdapterStatus, str]:
        """Read the origin again and move the name to what is there; give the digest before, empty if there was none.

        percent   of the requests that it gets; below 100 the name stays, and what is there becomes a version beside
        Registers the name if its folder is new. Raises as `ready` does; then the name still points where it did.
        InvalidInput where there is nothing to share the requests with.
        """
        if not 0 <= percent <= 100:
            raise InvalidInput(f"percent {percent} is not between 0 and 100")
        if percent < 100:
            self._require_versions(name)
        if name == BASE:
            raise InvalidInput(f"{BASE!r} is the base model itself and always loaded")
        act = partial(self._load_beside, name, percent) if percent < 100 else partial(self._load_in_place, name)
        self._loads[name] += 1
        try:
            return await (act() if self._following is None else self._following.order(name, act))
        finally:
            self._loads -= Counter([name])  # keeps no zeros

    async def _load_in_place(self, name: str) -> tuple[AdapterStatus, str]:
        record, flight = await self._loading(name, 100)
        previous = record.digest
        (await self._join(flight)).release()
        return self._statuses.of(record), previous

    async def _load_beside(self, name: str, percent: int) -> tuple[AdapterStatus, str]:
        """Have what the name points to kept on disk first: its origin holds something else."""
        record = self._registry.get(name)
        previous = record.digest
        if not previous:
            raise InvalidInput(f"adapter {name!r} is not loaded, so no version can share its requests; load it first")
        with self._pointing.history.hold(previous):
            lease = self._host.acquire(previous)
            with lease or await self._join(self._flight_of(record)) as held:
                assert held.adapter is not None
                await self._loader.keep(held.adapter)
                self._pointing.check_kept(held.adapter)
            record, flight = await self._loading(name, percent)
            (await self._join(flight)).release()
        if self._index is not None:
            await self._index.flush()
        return self._statuses.of(record), previous

    async def _loading(self, name: str, percent: int) -> tuple[Record, Flight]:
        """A name and the read of its origin, which begins now unless one is about to."""
        if (source := await self.find_source(name)) is not None:
            self._registry.register(name, source)
        record = self._registry.get(name)
        if source is None:
            raise AdapterNotFound(f"adapter {name!r} is not in any adapter folder any more", adapter=name)
        flight = self._flights.get((name, LOAD))
        if flight is None or flight.has_begun or flight.percent != percent:
            self._loader.forget_failure(name)
            flight = self._take_off_load(record, percent)
        return record, flight

    async def unload(self, name: str) -> tuple[int, int, int]:
        """Give back what an adapter holds, once no request needs it; (host, device, disk) bytes that were freed.

        Every version of it goes. The name stays, and the next request reads the origin. What is shared with another
        name stays too.
        """
        return await (self.unload_here(name) if self._following is None else self._following.unload(name))

    async def unload_here(self, name: str) -> tuple[int, int, int]:
        """As `unload`, whatever replicas do."""
        record = self._registry.get(name)
        digests, kept = record.digests, {*record.digests, *record.history}
        record.generation += 1  # a load under way serves who waits for it and no one else
        record.served = record.generation
        self._loader.forget_failure(name)
        self._metrics.adapter_gone(name)
        self.leave_flights(record)
        if not kept:
            return 0, 0, 0
        self._pointing.unloading.update(digests)
        try:
            host_bytes = {digest: self._host.bytes_of(digest) for digest in digests}
            disk_bytes = {digest: self._disk.bytes_of(digest) if self._disk is not None else 0 for digest in kept}
            self._pointing.point(record, Versions("", {}, ()))
            gone = [digest for digest in digests if not self._registry.is_aliased(digest)]
            for digest in gone:
                for copy in self._host.doom(digest):
                    await copy.wait()
            device_bytes = sum([await self._residency.evict(digest) for digest in gone])
            disk = sum(size for digest, size in disk_bytes.items() if self._disk and digest not in self._disk)
            return sum(host_bytes[digest] for digest in gone), device_bytes, disk
        finally:
            self._pointing.unloading -= Counter(digests)  # keeps no zeros
            for digest in digests:
                self._pointing.forget(digest)

    async def set_traffic(self, name: str, asked: Mapping[str, int]) -> AdapterStatus:
        """Divide the requests for a name among its versions, by digest; 100 percent to one promotes it or goes back.

        Kept on disk when this returns. Raises AdapterNotFound, InvalidInput, and as `ready` does where what the name is
        to point to cannot be loaded; then nothing has changed.
        """
        self._require_versions(name)
        act = partial(self._divide, name, asked)
        return await (act() if self._following is None else self._following.order(name, act))

    async def _divide(self, name: str, asked: Mapping[str, int]) -> AdapterStatus:
        record = self._registry.get(name)
        wanted = versions.divided(record, asked, self._config.kept_versions)
        if wanted.digest != record.digest:
            with await self._join(self._take_off(record, wanted.digest)) as lease:
                # again, for something may have moved meanwhile
                wanted = versions.divided(record, asked, self._config.kept_versions)
                if lease.adapter is None or lease.adapter.digest != wanted.digest:
                    raise Unavailable(f"adapter {name!r} moved while its versions were divided; try again")
                self._pointing.check_pin_moves(record, lease.adapter)
                self._pointing.describe(record, lease.adapter)
                self._pointing.point(record, wanted)
        else:
            self._pointing.point(record, wanted)
        if self._index is not None:
            await self._index.flush()
        return self._statuses.of(record)

    def leave_flights(self, record: Record) -> None:
        """Have loads under way serve who waits for them, and no one else."""
        for kind in ("", LOAD, *record.digests):
            self._flights.pop((record.name, kind), None)

    async def bring_version(self, record: Record, digest: str) -> HostLease:
        """A version in host memory, from there, from disk or from its files. Raises as `ready` does."""
        if (lease := self._host.acquire(digest)) is not None:
            return lease
        return await self._join(self._flights.get((record.name, digest)) or self._take_off(record, digest))

    def _require_versions(self, name: str) -> None:
        """Raises InvalidInput where nothing could keep several versions, or share them with replicas."""
        if self._disk is None:
            raise InvalidInput(
                "several versions of one adapter need a disk tier: start with --set cache.disk_path=FOLDER"
            )
        if self._has_replicas and self._following is None:
            raise InvalidInput(
                "replicas share the versions of an adapter in a folder: start all with --set api.publish_folder=FOLDER,"
                " one that all of them have"
            )
        record = self._registry.find(name)
        if self._following is not None and record is not None and not self._following.is_shared(record):
            raise InvalidInput(
                f"adapter {name!r} does not lie in publish_folder, where replicas share versions; publish it there"
            )

    async def refresh(self, news: News) -> list[str]:
        """Take over what a look at a place found: adapters that are new or were replaced, and those that left.

        A name that is loaded moves to what is there now as `load` moves it; others are read when they are asked for.
        Gives names that could not be had now.
        """
        rank = self._origin.rank(news.place)
        for name in news.gone:
            record = self._registry.find(name)
            if record is not None and record.source.place == news.place:
                await self._leave(record)
        failed = []
        for name, listed in news.changed.items():
            record = self._registry.find(name)
            if record is None:
                self._register(name, listed)
            elif self._origin.rank(record.source.place) >= rank and not await self._take_over(record, listed):
                failed.append(name)
        if news.has_other_setups or any(isinstance(listed.source, FolderSource) for listed in news.changed.values()):
            await self.on_change()
        return failed

    async def _leave(self, record: Record) -> None:
        """An adapter is gone from the place that counted for it; another place may have one of that name."""
        if self._following is not None:
            await self._following.gone(record)
        await self.unload_here(record.name)
        try:
            source = await self.find_source(record.name)
        except AdapterdError:
            source = None
        if source is not None:
            self._registry.register(record.name, source)
        elif not record.digests:  # nobody asked for it meanwhile
            self._registry.remove(record)
            if self._index is not None:
                self._index.forget(record.name)

    async def _take_over(self, record: Record, listed: Listed) -> bool:
        """Move a name to what its place holds now, if it is loaded; whether that is done with."""
        self._registry.register(record.name, listed.source)
        if not record.digest or record.stamp == listed.stamp:
            return True
        if self._loads[record.name]:
            return False  # somebody is at it, and may want it beside what is there
        if self._following is not None and self._following.is_shared(record):
            return await self._following.take_over(record)
        try:
            await self.load_found(record)
        except AdapterdError as error:
            log.warning("adapter %s stays as it is: %s", record.name, error.message)
            return isinstance(error, AdapterRefused)
        return True

    async def load_found(self, record: Record) -> None:
        """Move a name to what its place holds."""
        (await self._join(self._take_off_load(record))).release()

    async def pin(self, name: str, is_pinned: bool) -> AdapterStatus:
        """Keep an adapter in host memory, and on the device from its first use on; loads it. Or let it go again.

        Raises as `ready` does, and Overloaded if the pinned adapters would leave too little to the others.
        """
        record = self._registry.get(name)
        lease = await self.ready(name) if is_pinned else None
        try:
            if is_pinned and not record.is_pinned:
                check_pin(record, self._registry.records(), self._pointing.budgets)
                check_tenant_pin(record, self._registry.records(), self._tenants)
            self._set_pin(record, is_pinned)
        finally:
            if lease is not None:
                lease.release()
        if self._index is not None:
            await self._index.flush()
        return self._statuses.of(record)

    def _set_pin(self, record: Record, is_pinned: bool) -> None:
        record.is_pinned = is_pinned
        self._pointing.update_pins(record.digests)
        if self._index is not None:
            self._index.note(record)

    def list(self, wanted: Wanted = ALL, *, after: str = "", limit: int = 100) -> Page:
        """Give a page of statuses by name, behind the name `after`, and the number of adapters that are wanted."""
        return self._statuses.page(wanted, after, limit)

    async def card(self, name: str) -> str:
        """The model card at the adapter's origin, Markdown. Raises AdapterNotFound, also where it has none."""
        return await asyncio.to_thread(card_of, self._registry.get(name).source, name)

    def is_shared(self, name: str) -> bool:
        """Whether several digests answer requests for a name."""
        record = self._registry.find(name)
        return record is not None and bool(record.shares)

    def get(self, name: str) -> AdapterStatus:
        """Raises AdapterNotFound."""
        return self._statuses.of(self._registry.get(name))

    def tenants_changed(self) -> None:
        """Adapters may have another owner, and owners another limit."""
        self._host.tenants_changed()
        self._residency.tenants_changed()

    @property
    def is_loading(self) -> bool:
        """Whether any load is under way."""
        return bool(self._all_flights)

    @property
    def used_bytes(self) -> int:
        """Of all tiers together."""
        disk = self._disk.used_bytes if self._disk is not None else 0
        return self._host.used_bytes + self._residency.used_bytes + disk

    def check_integrity(self) -> None:
        """AssertionError when the books of the host or the device do not balance."""
        self._host.check_integrity()
        self._residency.check_integrity()
        if self._disk is not None and not self._all_flights:  # nothing is being written
            self._disk.check_integrity()
        assert set(self._flights.values()) <= self._all_flights
