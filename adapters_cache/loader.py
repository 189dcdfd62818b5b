"""One load: disk, or origin -> verified and lowered -> host tier, in time. On the event loop; threads do the work."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import torch

from adapters_cache.build import build_adapter
from adapters_cache.disk import DiskTier
from adapters_cache.draft import BaseWeights
from adapters_cache.failures import Failures, again
from adapters_cache.flight import Flight
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.host import HostLease, HostTier
from adapters_cache.origin import Origin
from adapters_cache.registry import Record
from adapters_cache.residency import Residency
from adapters_cache.sources import Source
from adapters_cache.version_files import VersionFiles
from adapters_cache.workers import Workers
from server.core import Adapter, BaseInfo
from server.errors import AdapterChanged, AdapterdError, AdapterRefused, Internal, Unavailable

log = logging.getLogger(__name__)
DIGEST_CHARS = 12  # of a digest in a message


class Loader:
    """Brings adapters into the host tier. Which name points where is not its business."""

    def __init__(
        self,
        origin: Origin,
        disk: DiskTier | None,
        host: HostTier,
        residency: Residency,
        base: BaseInfo,
        dtype: torch.dtype,
        *,
        max_concurrent_loads: int,
        timeout_s: float,
        weights: BaseWeights | None = None,
        pin_memory: bool,
        versions: VersionFiles | None = None,
    ) -> None:
        """versions   where replicas keep the files of what their names point to, if they do"""
        self._origin, self._disk, self._host, self._residency = origin, disk, host, residency
        self._base, self._dtype, self._weights, self._pin_memory = base, dtype, weights, pin_memory
        self._disk_workers = Workers("disk", max_concurrent_loads)
        self._timeout_s, self._versions = timeout_s, versions
        self._failures = Failures()

    async def load(self, record: Record, flight: Flight) -> HostLease:
        """Read, verify and lower an adapter, and take it into the host tier.

        A flight that is not explicit gives what the name stands for, or nothing: it raises AdapterChanged if that is
        gone from disk and origin, and what failed a moment ago fails again without being read.
        Raises AdapterRefused and its kinds, Overloaded, Unavailable after the time limit.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._host.put(await self._read(record, flight))
        except TimeoutError:
            if flight.is_reading:  # others only waited for their turn, or for room
                self._failures.back_off(record.name)
            raise Unavailable(
                f"adapter {record.name!r} took longer to load than load_timeout_s {self._timeout_s:g}; try again later"
            ) from None
        except AdapterdError:
            raise
        except Exception as error:
            log.exception("adapter %s cannot be loaded", record.name)
            raise Internal(f"adapter {record.name!r} cannot be loaded: {type(error).__name__}") from error

    def forget_failure(self, name: str) -> None:
        """Have the next load read the origin, whatever came of the last one."""
        self._failures.forget(name)

    async def _read(self, record: Record, flight: Flight) -> Adapter:
        version: Source | None = None  # the kept files of one, which are read in place of what the origin has now
        wanted = flight.digest or record.digest
        if not flight.is_explicit:
            if wanted and (adapter := await self._from_disk(wanted)) is not None:
                return replace(adapter, manifest=replace(adapter.manifest, name=record.name))
            if flight.digest and self._disk is not None and flight.digest in self._disk:
                raise Unavailable(f"version {wanted[:DIGEST_CHARS]} of {record.name!r} cannot be read; try again later")
            version = await self._find_version(record, wanted)
            if version is None and flight.digest:
                raise AdapterChanged(
                    f"adapter {record.name!r} has no version {wanted[:DIGEST_CHARS]} on disk any more; call SetTraffic"
                    " with another one",
                    adapter=record.name,
                )
            self._failures.check(record.name)
        known = None if flight.is_explicit else self._failures.find(record.name)
        try:
            source = version or record.source
            reading = await self._origin.read(source, record.name, self._build, known=known, on_begin=flight.begin)
        except Unavailable:
            self._failures.back_off(record.name)
            raise
        except FileNotFoundError as error:
            if version is None:
                raise
            raise _removed(record, wanted) from error
        flight.is_reading = False
        if known is not None and reading.found is known.error:
            raise again(known.error)
        if version is None:
            flight.stamp = reading.stamp
        try:
            adapter = self._accept(reading.found, record, flight)
        except AdapterRefused as error:
            if version is not None and await self._find_version(record, wanted) is None:
                raise _removed(record, wanted) from error
            if version is not None and reading.is_gone:  # it was removed while it was read, and is kept again
                return await self._read(record, flight)
            self._failures.remember(record.name, reading.stamp, error)
            raise
        self._failures.forget(record.name)
        await self.keep(adapter)
        return adapter

    async def _find_version(self, record: Record, digest: str) -> Source | None:
        """The files that are kept of what a name points to."""
        stamp = record.stamps.get(digest, "")
        if self._versions is None or not stamp:
            return None
        return await self._origin.look(str(self._versions.folder), record.name, self._versions.find, stamp)

    async def keep(self, adapter: Adapter) -> bool:
        """Put an adapter on disk; whether it is there now."""
        if self._disk is None:
            return False
        return await self._disk_workers.run(adapter.digest, self._disk.put, adapter)

    async def _from_disk(self, digest: str) -> Adapter | None:
        if self._disk is None or digest not in self._disk:
            return None
        return await self._disk_workers.run(digest, self._disk.get, digest)

    def _build(self, checkpoint: Checkpoint) -> Adapter:
        """In a worker thread."""
        return build_adapter(checkpoint, self._base, self._dtype, self._weights, pin_memory=self._pin_memory)

    def _accept(self, found: Adapter | AdapterRefused, record: Record, flight: Flight) -> Adapter:
        """Raises AdapterRefused unless this can be served, under this name."""
        if isinstance(found, AdapterRefused):
            raise found
        self._host.check_size(found)
        self._residency.check_size(found)
        # a read that something newer has overtaken moves no name: it serves those who waited for it
        is_moving = not (flight.is_explicit or flight.is_overtaken(record.served))
        if flight.digest and found.digest != flight.digest:
            raise AdapterChanged(
                f"the files of version {flight.digest[:DIGEST_CHARS]} of {record.name!r} hold another one; publish it"
                " again",
                adapter=record.name,
            )
        if is_moving and record.digest and found.digest != record.digest and not flight.digest:
            raise AdapterChanged(
                f"adapter {record.name!r} changed at its origin since {record.digest[:DIGEST_CHARS]}; call Load to"
                " move the name to what is there now, or put the old files back",
                adapter=record.name,
            )
        return found


def _removed(record: Record, digest: str) -> Unavailable:
    return Unavailable(
        f"version {digest[:DIGEST_CHARS]} of {record.name!r} was removed while it was read, for another replica has"
        " moved the name; try again"
    )
