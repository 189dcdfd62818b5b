"""What administrators are told: of each name, what it stands for and where that is."""

from __future__ import annotations

import os

from adapters_cache.disk import DiskTier
from adapters_cache.host import HostTier
from adapters_cache.registry import Record, Registry
from adapters_cache.residency import Residency
from adapters_cache.sources import FolderSource, Source
from server.core import AdapterStatus, Tier, VersionStatus, Wanted
from server.errors import AdapterNotFound

CARD = "README.md"
MAX_CARD_BYTES = 256 << 10

Page = tuple[list[AdapterStatus], int]


class Statuses:
    """Reads the tiers and changes nothing."""

    def __init__(self, registry: Registry, disk: DiskTier | None, host: HostTier, residency: Residency) -> None:
        self._registry, self._disk, self._host, self._residency = registry, disk, host, residency

    def page(self, wanted: Wanted, after: str, limit: int) -> Page:
        """Give `limit` statuses by name, behind the name `after`, and the number of adapters that are wanted."""
        if not (wanted.task or wanted.tier or wanted.contains) and wanted.tenant.may_use_all:
            records, total = self._registry.page(wanted.prefix, after, limit)
            return [self.of(record) for record in records], total
        records, _ = self._registry.page(wanted.prefix, "", len(self._registry))
        fitting = [record for record in records if self._fits(record, wanted)]
        behind = [record for record in fitting if record.name > after][:limit]
        return [self.of(record) for record in behind], len(fitting)

    def of(self, record: Record) -> AdapterStatus:
        digest = record.digest
        return AdapterStatus(
            name=record.name,
            tier=self._tier(digest),
            manifest=record.manifest,
            task=record.task,
            labels=record.labels,
            host_bytes=self._host.bytes_of(digest),
            device_bytes=self._residency.bytes_of(digest),
            disk_bytes=self._disk.bytes_of(digest) if self._disk is not None else 0,
            is_pinned=record.is_pinned,
            loaded_at=record.loaded_at,
            last_used_at=record.last_used_at,
            error=record.error,
            heads=record.heads,
            versions=self._versions(record),
        )

    def _fits(self, record: Record, wanted: Wanted) -> bool:
        is_of_task = not wanted.task or record.task == wanted.task
        return (
            is_of_task
            and wanted.contains in record.name
            and wanted.tenant.may_use(record.name)
            and (wanted.tier is None or self._tier(record.digest) is wanted.tier)
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
        if not (record.shares or record.history):
            return ()
        percents = {
            record.digest: 100 - sum(record.shares.values()),
            **record.shares,
            **dict.fromkeys(record.history, 0),
        }
        return tuple(VersionStatus(digest, percent, self._tier(digest)) for digest, percent in percents.items())


def card_of(source: Source, name: str) -> str:
    """The model card of an adapter in a folder. Blocks. Raises AdapterNotFound where there is none."""
    if not isinstance(source, FolderSource):
        raise AdapterNotFound(f"the card of {name!r} is in its registry; see `adapterd search` and `adapterd pull`")
    try:
        with open(source.path / CARD, "rb", opener=_open_plain) as file:
            return file.read(MAX_CARD_BYTES).decode(errors="replace")
    except OSError as error:
        raise AdapterNotFound(f"{name!r} has no card; put a {CARD} into its folder") from error


def _open_plain(path: str, flags: int) -> int:
    """Neither where a link leads, nor what waits for a writer."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
