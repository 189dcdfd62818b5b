"""Which digest a name points to, and what is let go of when it moves. On the event loop's thread."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from adapters_cache import versions
from adapters_cache.disk import DiskTier
from adapters_cache.flight import Flight
from adapters_cache.host import HostTier
from adapters_cache.index import Index
from adapters_cache.pins import check_pin, check_tenant_pin
from adapters_cache.registry import Record, Registry
from adapters_cache.residency import Residency
from adapters_cache.versions import History, Versions
from server.config import CacheConfig
from server.core import Adapter, Tier
from server.errors import Overloaded
from server.metrics import Metrics
from server.tenants import Tenants

log = logging.getLogger(__name__)


class Pointing:
    """Moves names over the tiers: what no name points to any more leaves them.

    history    digests of names that have several
    unloading  digests whose device bytes an unload is going to count
    """

    def __init__(
        self,
        registry: Registry,
        host: HostTier,
        disk: DiskTier | None,
        residency: Residency,
        index: Index | None,
        metrics: Metrics,
        tenants: Tenants,
        config: CacheConfig,
    ) -> None:
        self._registry, self._host, self._disk, self._residency = registry, host, disk, residency
        self._index, self._metrics, self._tenants, self._config = index, metrics, tenants, config
        self.history = History()
        self.unloading: Counter[str] = Counter()

    def move(self, record: Record, adapter: Adapter, flight: Flight) -> None:
        """Point a name to what was loaded, unless something newer is there; then nobody will find it again."""
        has_gone = self._registry.find(record.name) is not record
        has_moved = not flight.is_explicit and record.digest not in ("", adapter.digest)
        if has_gone or has_moved or flight.is_overtaken(record.served):
            self.discard(adapter.digest)
            return
        num_kept = self._config.kept_versions if self._disk is not None else 0
        is_beside = flight.percent < 100 and record.digest != adapter.digest
        if is_beside:
            self.check_kept(adapter)
            wanted = versions.shared(record, adapter.digest, flight.percent, num_kept)
        else:
            if flight.is_explicit and record.digest:
                self.check_pin_moves(record, adapter)
            else:
                self.drop_pin_that_grew(record, adapter)
            self.describe(record, adapter)
            wanted = versions.moved(record, adapter.digest, num_kept)
        if flight.is_explicit:
            record.served = flight.generation
        if flight.stamp:
            record.stamp, record.stamps = flight.stamp, {**record.stamps, adapter.digest: flight.stamp}
        record.loaded_at, record.error = time.time(), ""
        self.point(record, wanted)

    def check_pin_moves(self, record: Record, adapter: Adapter) -> None:
        """Raises Overloaded where a pinned name's next version would leave too little to the others."""
        try:
            self._check_pin(record, adapter)
        except Overloaded:
            self.discard(adapter.digest)
            raise

    def drop_pin_that_grew(self, record: Record, adapter: Adapter) -> None:
        """A pinned name that was not loaded comes back larger, or to smaller tiers: it is served unpinned."""
        try:
            self._check_pin(record, adapter)
        except Overloaded as error:
            log.warning("adapter %s is not pinned any more: %s", record.name, error.message)
            record.is_pinned = False

    def _check_pin(self, record: Record, adapter: Adapter) -> None:
        if record.is_pinned:
            moved = replace(record, manifest=adapter.manifest, sizes=self._sizes_of(adapter))
            records = [moved if other is record else other for other in self._registry.records()]
            check_pin(moved, records, self.budgets)
            check_tenant_pin(moved, records, self._tenants)

    def _sizes_of(self, adapter: Adapter) -> Mapping[Tier, int]:
        return {Tier.HOST: adapter.size_bytes, Tier.DEVICE: self._residency.slot_bytes(adapter)}

    @property
    def budgets(self) -> Mapping[Tier, int]:
        return {Tier.HOST: self._host.budget_bytes, Tier.DEVICE: self._residency.budget_bytes}

    def check_kept(self, adapter: Adapter) -> None:
        """Raises Overloaded for a version that the next eviction would lose."""
        if self._disk is None or adapter.digest not in self._disk:
            self.discard(adapter.digest)
            raise Overloaded(
                f"disk_bytes {self._config.disk_bytes} has no room for another version, {adapter.size_bytes} bytes;"
                " raise it, or unload some adapters",
                retry_after_s=5.0,
            )

    def describe(self, record: Record, adapter: Adapter) -> None:
        """What is known of a name is of the adapter that it points to."""
        head = adapter.spec.head
        record.manifest = replace(adapter.manifest, name=record.name)
        record.sizes = self._sizes_of(adapter)
        record.task, record.labels = adapter.spec.task.value, head.labels if head else ()
        record.heads = tuple(own.name for own in adapter.spec.all_heads)

    def point(self, record: Record, wanted: Versions) -> None:
        """Move a name, and let go of what nothing points to any more."""
        dropped = set(record.history) - {wanted.digest, *wanted.shares, *wanted.history}
        before = record.digests
        changed = self._registry.point(record, wanted.digest, wanted.shares)
        record.history = wanted.history
        kept = {*record.digests, *record.history}
        record.stamps = {digest: stamp for digest, stamp in record.stamps.items() if digest in kept}
        self.update_pins({*before, *record.digests})  # a version beside may have become the one that is pinned
        self.note_versions(record)
        for digest in changed | dropped:
            self.discard(digest)
        if self._index is not None:
            self._index.note(record)

    def note_versions(self, record: Record) -> None:
        if record.shares:
            self._metrics.versions_begun(record.name)
        else:
            self._metrics.versions_gone(record.name)
        self.history.note(record)

    def discard(self, digest: str) -> None:
        """What no name points to goes from memory, and from disk unless a name can go back to it."""
        if not self._registry.is_aliased(digest):
            self.forget(digest)
            if self._disk is not None and digest not in self.history.known:
                self._disk.remove(digest)

    def update_pins(self, digests: Iterable[str]) -> None:
        for digest in digests:
            is_pinned = self._registry.is_pinned(digest)
            self._host.pin(digest, is_pinned)
            self._residency.pin(digest, is_pinned)

    def forget(self, digest: str) -> None:
        """Drop a digest that no name points to: on the host once no request needs it, then on the device."""
        if not self._registry.is_aliased(digest):
            self._host.doom(digest)
            self.on_host_gone(digest)

    def on_host_gone(self, digest: str) -> None:
        # a request holds its host lease until it is answered, so from now on nobody places this digest on the device
        if not (self._registry.is_aliased(digest) or self._host.is_held(digest) or self.unloading[digest]):
            self._residency.doom(digest)
