"""The origin tier: where adapters come from. Folders whose sub-folders are adapters, and registries.

Every place has threads of its own, so one that hangs holds up its own adapters and nobody else's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from adapters_cache.failures import Failure
from adapters_cache.formats.adapterhub import is_adapter, read_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.setups import is_setup
from adapters_cache.registry import is_name
from adapters_cache.sources import FolderSource, Registry, RegistrySource, Source
from adapters_cache.workers import Workers
from server.errors import AdapterNotFound, AdapterRefused, InvalidInput

log = logging.getLogger(__name__)
T = TypeVar("T")
HUB, FOLDERS = "hub:", "folders"
LISTED = 100_000  # adapters of a registry


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What a source held, or why it is refused; `stamp` and `state` are the source's as they were before."""

    stamp: str
    state: str
    found: T | AdapterRefused


@dataclass(frozen=True, slots=True)
class Listed:
    """An adapter that a listing found."""

    source: Source
    stamp: str


class Origin:
    """Adapters by name; of two with one name the earlier place's counts, folders before registries."""

    def __init__(
        self,
        folders: Sequence[Path],
        registries: Sequence[str] = (),
        *,
        max_adapter_bytes: int,
        max_concurrent_loads: int,
        load_timeout_s: float,
    ) -> None:
        """Raises InvalidInput for a registry that cannot be."""
        self._folders = tuple(folders)
        self._registries = {address: _opened(address) for address in registries}
        self._max_bytes, self._num_threads = max_adapter_bytes, max_concurrent_loads
        # a file that hangs its reader is told to be that file's fault, before the load is given up
        self._pickle_timeout_s = load_timeout_s / 2
        self._workers: dict[str, Workers] = {}

    async def scan(self) -> dict[str, Listed]:
        """Give every adapter in the folders. Raises OSError."""
        return await self._at(FOLDERS).run("", self._scan)

    async def scan_registry(self, address: str) -> dict[str, Listed]:
        """Give every adapter of one registry. Raises AdapterdError."""
        return await self._at(address).run("", self._listed, address)

    @property
    def registries(self) -> Sequence[str]:
        return tuple(self._registries)

    async def find(self, name: str, known: Source | None = None) -> Source | None:
        """Give the source of one adapter. Names that cannot be adapters are not looked for.

        known   where it lay so far; a look at it waits for a read that is under way there
        """
        if not is_name(name):
            return None
        if (found := await self._at(known.place if known else FOLDERS).run(name, self._find, name)) is not None:
            return found
        for address in self._registries:
            if (found := await self._at(address).run(name, self._find_there, address, name)) is not None:
                return found
        return None

    async def read(
        self,
        source: Source,
        name: str,
        build: Callable[[Checkpoint], T],
        *,
        known: Failure | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> Reading[T]:
        """Read a source and build from it, both in a worker thread. Raises what the format and `build` raise.

        known     a source that is still as it was then is not read: the reading's `found` is `known.error` itself
        on_begin  called in the worker thread before it looks at the source
        Cancelling gives up waiting: a read that has begun ends by itself.
        """
        return await self._at(source.place).run(name, self._read, source, name, build, known, on_begin)

    def is_busy(self, source: Source, name: str) -> bool:
        return self._at(source.place).is_busy(name)

    def _at(self, place: str) -> Workers:
        if place not in self._workers:
            self._workers[place] = Workers(f"origin {Path(place).name!r}", self._num_threads)
        return self._workers[place]

    def _scan(self) -> dict[str, Listed]:
        found: dict[str, Listed] = {}
        for folder in self._folders:
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                path = Path(entry.path)
                if entry.name.startswith(".") or not is_adapter(path):
                    continue
                if not is_name(entry.name):
                    log.warning("adapter folder %r is left out: it cannot be an adapter's name", entry.name)
                elif entry.name in found:
                    log.warning("adapter %r is in two folders; the first one counts", entry.name)
                else:
                    found[entry.name] = Listed(FolderSource(path), str(entry.stat().st_mtime_ns))
        return found

    def _listed(self, address: str) -> dict[str, Listed]:
        registry = self._registries[address]
        found: dict[str, Listed] = {}
        filters = {"author": address.removeprefix(HUB), "limit": LISTED} if address.startswith(HUB) else {}
        for artefact in registry.search(**filters):
            name = artefact.name.rpartition("/")[2]
            if is_name(name):
                source = RegistrySource(registry, address, artefact.name, artefact.revision)
                found.setdefault(name, Listed(source, artefact.revision))
        return found

    def _find(self, name: str) -> Source | None:
        found = (folder / name for folder in self._folders if is_adapter(folder / name))
        path = next((path for path in found if "/" not in name or is_setup(path.parent)), None)
        return FolderSource(path) if path is not None else None

    def _find_there(self, address: str, name: str) -> Source | None:
        registry = self._registries[address]
        full = f"{address.removeprefix(HUB)}/{name}" if address.startswith(HUB) else name
        try:
            artefact = registry.find(full)
        except (AdapterNotFound, InvalidInput):
            return None
        return RegistrySource(registry, address, full, artefact.revision)

    def _read(
        self,
        source: Source,
        name: str,
        build: Callable[[Checkpoint], T],
        known: Failure | None,
        on_begin: Callable[[], None],
    ) -> Reading[T]:
        on_begin()
        stamp, state = source.stamp(), source.state()
        if known is not None and known.state == state:
            return Reading(stamp, state, known.error)
        try:
            with source.opened() as folder:
                checkpoint = read_checkpoint(
                    folder, name=name, max_bytes=self._max_bytes, pickle_timeout_s=self._pickle_timeout_s
                )
                return Reading(stamp, state, build(checkpoint))
        except AdapterRefused as error:
            return Reading(stamp, state, error)


def _opened(address: str) -> Registry:
    from adapters_cache.sharing.origins import Address, open_registry  # brings the hub's client along

    registry: Any = open_registry(Address(HUB if address.startswith(HUB) else address, address.removeprefix(HUB)))
    return cast(Registry, registry)
