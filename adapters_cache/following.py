"""Names move in all replicas: what moves one here is written to the log of orders, what others wrote is done here.

Operations on a name wait for each other. Each begins with the name as the log has it and ends with an order; the last
order counts, so that all replicas end alike. On the event loop's thread; files are touched in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from adapters_cache.host import HostLease, HostTier
from adapters_cache.orders import Order
from adapters_cache.pointing import Pointing
from adapters_cache.registry import Record, Registry
from adapters_cache.shared_folder import MovedMeanwhile, SharedFolder, tried_lock
from adapters_cache.sources import FolderSource, Source
from adapters_cache.versions import Versions
from adapters_cache.workers import Workers
from server.backoff import back_off_s
from server.errors import AdapterdError, AdapterNotFound, AdapterRefused, Unavailable
from server.folders import PUBLISH_LOCK
from server.metrics import Metrics

FOLLOW_S = 0.5  # between looks at the log
log = logging.getLogger(__name__)
T = TypeVar("T")


class Loads(Protocol):
    """The part of the facade that this file uses."""

    async def find_source(self, name: str) -> Source | None: ...

    async def bring_version(self, record: Record, digest: str) -> HostLease:
        """A version in host memory, from there, from disk or from its files."""

    async def load_found(self, record: Record) -> None: ...

    async def unload_here(self, name: str) -> tuple[int, int, int]: ...

    def leave_flights(self, record: Record) -> None:
        """Loads under way serve who waits for them, and no one else."""


@dataclass(slots=True)
class _Failed:
    """An order that could not be followed: how often, and when it is tried again, on the clock of time.monotonic."""

    count: int = 0
    until: float = 0.0


class Following:
    """One replica's side of the log in `folder`, for the adapters that lie there. The others are left as they are."""

    def __init__(
        self, folder: Path, registry: Registry, pointing: Pointing, host: HostTier, loads: Loads, metrics: Metrics
    ) -> None:
        self.folder, self._shared = folder, SharedFolder(folder)
        self._registry, self._pointing, self._host, self._loads = registry, pointing, host, loads
        self._metrics = metrics
        self._worker = Workers("the log of orders", 1)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # that somebody has or waits for
        self._pending: dict[str, Order] = {}  # read, and not yet done here
        self._failed: dict[str, _Failed] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._operations: set[asyncio.Task[object]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def is_shared(self, record: Record) -> bool:
        """Whether orders are given for a name: where its adapter lies in the folder that all replicas have."""
        return record.source.place == str(self.folder)

    async def start(self, stamps: Mapping[str, str]) -> None:
        """Point names as the log has them, loading nothing, and follow it from now on.

        stamps   of the adapters' folders now: those that were replaced without an order are taken over in a while
        """
        orders: Mapping[str, Order] = {}
        changed: Collection[str] = ()
        try:
            orders, changed = await self._worker.run("", self._shared.begin, stamps)
        except (OSError, Unavailable) as error:
            self._cannot_read(error)
        for name, order in orders.items():
            record = self._registry.find(name)
            if record is not None and self.is_shared(record):
                self._point_cold(record, order)
        self._tasks = [asyncio.create_task(work) for work in (self._keep_looking(), self._take_over_all(changed))]

    async def stop(self) -> None:
        """Give up what is under way. An order that was written meanwhile counts at the next start."""
        tasks = [*self._tasks, *self._following.values(), *self._operations]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # what is asked for here

    async def order(self, name: str, act: Callable[[], Awaitable[T]]) -> T:
        """Do what moves a name, and have the others do it. A caller who leaves does not stop it half way.

        Raises what `act` raises, and Unavailable where the order cannot be written; then the name is where it was.
        """
        return await self._shielded(self._ordered(name, act))

    async def unload(self, name: str) -> tuple[int, int, int]:
        """As `Adapters.unload`, everywhere."""
        return await self._shielded(self._unloaded(name))

    async def take_over(self, record: Record) -> bool:
        """A folder was replaced by hand: load it and order what came of it, unless another replica did; whether that
        is done with.
        """
        return await self._shielded(self._taken_over(record))

    async def has_moved(self, record: Record, digest: str) -> bool:
        """Whether a name points elsewhere than to `digest`, now that the log has been looked at."""
        if self.is_shared(record):
            await self._shielded(self._caught_up(record.name))  # a caller who leaves takes no order along
        return record.digest != digest

    async def gone(self, record: Record) -> None:
        """A folder is gone: so are its versions, and what was ordered of them."""
        if self.is_shared(record):
            try:
                await self._worker.run("", self._shared.forget, record.name)
            except (OSError, Unavailable) as error:
                log.warning("versions of %s are not removed: %s", record.name, error)

    def again(self, name: str) -> None:
        """Do the last order of a name again: something of it was lost."""
        if (order := self._shared.log.last.get(name)) is not None and name not in self._pending:
            self._pending[name] = order

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _shielded(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        self._operations.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Unavailable("the server is stopping; the adapter may not have moved") from None

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._operations.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if the caller has left

    async def _ordered(self, name: str, act: Callable[[], Awaitable[T]]) -> T:
        async with self._lock(name):
            try:
                return await self._done(name, act)
            except MovedMeanwhile:
                return await self._done(name, act)  # from where the other replica has moved it

    async def _caught_up(self, name: str) -> None:
        async with self._lock(name):
            await self._catch_up(name)

    async def _unloaded(self, name: str) -> tuple[int, int, int]:
        async with self._lock(name):
            if name not in self._registry:  # it may have come a moment ago
                await self._catch_up(name)
            if self.is_shared(self._registry.get(name)):
                await self._write(name, self._shared.unload, name)
            return await self._loads.unload_here(name)

    async def _take_over_all(self, names: Collection[str]) -> None:
        """Take over what was replaced while nobody looked, one after another; what is being published is waited for."""
        count = 0
        while names := [name for name in names if not await self._is_taken_over(name)]:
            await asyncio.sleep(FOLLOW_S * back_off_s(count))
            count += 1

    async def _is_taken_over(self, name: str) -> bool:
        record = self._registry.find(name)
        return record is None or not self.is_shared(record) or await self.take_over(record)

    async def _taken_over(self, record: Record) -> bool:
        try:
            lock = await asyncio.to_thread(tried_lock, self.folder / PUBLISH_LOCK)
            if lock is None:
                return False  # it is being published, or another replica is at it
            with lock:
                async with self._lock(record.name):
                    seen = await self._catch_up(record.name)
                    found = await self._worker.run("", FolderSource(self.folder / record.name).stamp)
                    if found != record.stamp or (seen is not None and seen.digest and found != seen.stamp):
                        await self._done(record.name, lambda: self._loads.load_found(record))
        except (AdapterdError, OSError) as error:
            log.warning("adapter %s stays as it is: %s", record.name, error)
            return isinstance(error, AdapterRefused)
        return True

    async def _done(self, name: str, act: Callable[[], Awaitable[T]]) -> T:
        """Begin where the log has the name, and order what came of it, if that is new; or the name is as it was."""
        seen = await self._catch_up(name)
        record = self._registry.find(name)
        before = replace(record) if record is not None else None
        try:
            result = await act()
            record = self._registry.get(name)
            order = _order_of(record)
            if self.is_shared(record) and order != seen:
                await self._write(name, self._shared.put, order, seen)
            return result
        except BaseException:
            self._take_back(name, before)
            raise

    async def _write(self, name: str, write: Callable[..., None], *arguments: object) -> None:
        """Raises Unavailable, MovedMeanwhile, and InvalidInput for a version that the others could not have."""
        try:
            await self._worker.run("", write, *arguments)
        except OSError as error:
            raise Unavailable(
                f"{name!r} is where it was: the order to the other replicas cannot be written to publish_folder:"
                f" {error.strerror}; see that there is room and that the server may write"
            ) from error
        self._pending.pop(name, None)
        self._metrics.order_done("written")

    def _take_back(self, name: str, before: Record | None) -> None:
        record = self._registry.find(name)
        if record is None or not self.is_shared(record):
            return
        before = before or Record(name, record.source)
        if _order_of(record) == _order_of(before):
            return
        record.stamp, record.stamps, record.manifest, record.sizes = (
            before.stamp,
            before.stamps,
            before.manifest,
            before.sizes,
        )
        record.task, record.labels, record.heads = before.task, before.labels, before.heads
        record.loaded_at, record.is_pinned = before.loaded_at, before.is_pinned
        self._point(record, Versions(before.digest, before.shares, before.history))

    # what others have asked for

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                self._take(await self._worker.run("", self._shared.log.read))
            except (OSError, Unavailable) as error:
                self._cannot_read(error)
            now = time.monotonic()
            for name in self._pending:
                if name not in self._failed or self._failed[name].until <= now:
                    self._begin(name)

    def _cannot_read(self, error: Exception) -> None:
        log.warning("the orders of other replicas cannot be read: %s", error)
        self._metrics.order_done("failed")

    def _take(self, changed: Mapping[str, Order]) -> None:
        for name, order in changed.items():
            self._pending[name] = order
            self._failed.pop(name, None)
            self._begin(name)

    def _begin(self, name: str) -> None:
        if name not in self._following:
            task = self._following[name] = asyncio.create_task(self._follow(name))
            task.add_done_callback(lambda _: self._following.pop(name, None))

    async def _follow(self, name: str) -> None:
        """Do what was ordered last; what fails is left for a later look."""
        while name in self._pending:
            async with self._lock(name):
                order = self._pending.get(name)  # none, where something else was ordered here meanwhile
                if order is None:
                    return
                try:
                    await self._obey(order)
                except Exception as error:
                    if self._pending.get(name) is not order:
                        continue  # its files may be gone already
                    self._put_off(order, error)
                    return
                self._failed.pop(name, None)
                if self._pending.get(name) is order:
                    del self._pending[name]
                self._metrics.order_done("followed")

    def _put_off(self, order: Order, error: Exception) -> None:
        failed = self._failed.setdefault(order.name, _Failed())
        failed.until = time.monotonic() + FOLLOW_S * back_off_s(failed.count)
        failed.count += 1
        self._metrics.order_done("failed")
        is_known = isinstance(error, AdapterdError | OSError)
        log.warning("the order for %s is not followed: %s", order.name, error, exc_info=None if is_known else error)

    async def _catch_up(self, name: str) -> Order | None:
        """Have a name as the log says now, and give that. It points to versions that cannot be had all the same.

        Raises Unavailable where the log cannot be read.
        """
        try:
            changed, seen = await self._worker.run("", self._shared.look, name)
        except OSError as error:
            raise Unavailable(
                f"the orders of other replicas cannot be read from publish_folder: {error.strerror}; see that it is"
                " mounted"
            ) from error
        self._take(changed)
        if (order := self._pending.pop(name, None)) is None:
            return seen
        try:
            await self._obey(order)
            self._metrics.order_done("followed")
        except AdapterdError as error:
            log.warning("the order for %s is followed without its versions: %s", name, error.message)
            if (record := self._registry.find(name)) is not None:
                self._point_cold(record, order)
        return seen

    async def _obey(self, order: Order) -> None:
        """Raises AdapterNotFound where there is no such folder, and what loading raises."""
        record = self._registry.find(order.name)
        if not order.digest:
            if record is not None and self.is_shared(record):
                await self._loads.unload_here(order.name)
            return
        if record is None or not self.is_shared(record):
            source = await self._loads.find_source(order.name)
            if source is None or source.place != str(self.folder):
                raise AdapterNotFound(f"adapter {order.name!r} is not in publish_folder", adapter=order.name)
            record = self._registry.register(order.name, source)
        if any(self._host.bytes_of(digest) for digest in record.digests):
            await self._point_warm(record, order)
        else:
            self._point_cold(record, order)

    async def _point_warm(self, record: Record, order: Order) -> None:
        """Have all that will answer in host memory first, so that no request waits for a load."""
        record.stamps = {**record.stamps, **order.stamps}
        with ExitStack() as held:
            for digest in (order.digest, *order.shares):
                held.enter_context(self._pointing.history.hold(digest))
            first = held.enter_context(await self._loads.bring_version(record, order.digest))
            for digest in order.shares:
                held.enter_context(await self._loads.bring_version(record, digest))
            if self._registry.find(record.name) is not record:
                raise Unavailable(f"adapter {record.name!r} left while its versions were loaded; try again")
            assert first.adapter is not None
            if record.digest != order.digest:
                self._pointing.drop_pin_that_grew(record, first.adapter)
                self._pointing.describe(record, first.adapter)
                record.loaded_at = time.time()
            self._point_to(record, order)

    def _point_cold(self, record: Record, order: Order) -> None:
        if record.manifest is not None and record.manifest.digest != order.digest != "":
            record.manifest, record.sizes, record.loaded_at = None, {}, None  # of another one; until this is loaded
            record.task, record.labels, record.heads = "", (), ()
        self._point_to(record, order)

    def _point_to(self, record: Record, order: Order) -> None:
        record.stamps, record.stamp, record.error = order.stamps, order.stamp, ""
        if (record.digest, record.shares, record.history) != (order.digest, order.shares, order.history):
            self._point(record, Versions(order.digest, order.shares, order.history))

    def _point(self, record: Record, wanted: Versions) -> None:
        record.generation += 1
        record.served = record.generation
        self._loads.leave_flights(record)
        self._pointing.point(record, wanted)


def _order_of(record: Record) -> Order:
    kept = {record.digest, *record.shares, *record.history}
    stamps = {digest: stamp for digest, stamp in record.stamps.items() if digest in kept}
    return Order(record.name, record.digest, record.shares, record.history, stamps, record.stamp)
