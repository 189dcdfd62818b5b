"""The origin tier: where adapters come from. Folders whose sub-folders are adapters, and registries.

Every place has threads of its own, so one that hangs holds up its own adapters and nobody else's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from adapters_cache.failures import Failure
from adapters_cache.formats.adapterhub import ADAPTER_CONFIG, HEAD_CONFIG, is_adapter, read_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.fusions import FUSION_CONFIG
from adapters_cache.formats.setups import SETUP_CONFIG, is_setup
from adapters_cache.registry import is_name
from adapters_cache.sources import GONE, FolderSource, Registry, RegistrySource, Source, stamp_of
from adapters_cache.workers import Workers
from server.errors import AdapterNotFound, AdapterRefused, InvalidInput, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
HUB = "hub:"
ENVELOPES = (ADAPTER_CONFIG, HEAD_CONFIG, FUSION_CONFIG)
LISTED = 100_000  # adapters of a registry
MAX_READS = 5  # of a folder whose files change while they are read


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What a source held, or why it is refused; `stamp` is the source's as it was before, `is_gone` as it was after."""

    stamp: str
    found: T | AdapterRefused
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """An adapter that a listing found."""

    source: Source
    stamp: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a place holds. `setups`: saved compositions, by name, with what tells one content from another."""

    adapters: Mapping[str, Listed] = field(default_factory=dict)
    setups: Mapping[str, str] = field(default_factory=dict)


class Origin:
    """Adapters by name; of two with one name the earlier place's counts, folders before registries.

    places   folders and addresses of registries, in that order
    """

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
        self._folders = {str(folder): folder for folder in folders}
        self._registries = {address: _opened(address) for address in registries}
        self.places = (*self._folders, *self._registries)
        self._max_bytes, self._num_threads = max_adapter_bytes, max_concurrent_loads
        # a file that hangs its reader is told to be that file's fault, before the load is given up
        self._pickle_timeout_s = load_timeout_s / 2
        self._workers: dict[str, Workers] = {}

    def is_folder(self, place: str) -> bool:
        return place in self._folders

    def rank(self, place: str) -> int:
        """The lower one counts of two with one name; what lies inside of an adapter's folder comes first."""
        return self.places.index(place) if place in self.places else -1

    async def scan(self, place: str) -> Listing:
        """Give what a place holds. Raises OSError, AdapterdError."""
        look = self._scan_folder if place in self._folders else self._scan_registry
        return await self._at(place).run("", look, place)

    def known_source(self, place: str, name: str, stamp: str) -> Source | None:
        """The source of an adapter that a registry listed in a former life; None for any other place."""
        registry = self._registries.get(place)
        return RegistrySource(registry, place, _full(place, name), stamp) if registry is not None else None

    async def find(self, name: str) -> Source | None:
        """Give the source of one adapter. Names that cannot be adapters are not looked for.

        A look waits for a read of that name that is under way there. Raises AdapterdError if a place does not answer.
        """
        if not is_name(name):
            return None
        for place in self.places:
            look = self._find if place in self._folders else self._find_there
            where = self._folders.get(place, place)
            if (found := await self._at(place).run(name, look, where, name)) is not None:
                return found
        return None

    async def look(self, place: str, name: str, find: Callable[[str, str], T], what: str) -> T:
        """What `find` gives for a name and `what`, in a thread of the place."""
        return await self._at(place).run(name, find, name, what)

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

    # in worker threads

    def _scan_folder(self, place: str) -> Listing:
        adapters: dict[str, Listed] = {}
        setups: dict[str, str] = {}
        for entry in sorted(os.scandir(self._folders[place]), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            try:  # one look for each, for there may be many
                with os.scandir(entry.path) as entries:
                    files = list(entries)
                names, stamp = {file.name for file in files}, stamp_of(files)
            except OSError:  # a file, or gone meanwhile
                continue
            if SETUP_CONFIG in names:
                setups[entry.name] = stamp
            elif names.isdisjoint(ENVELOPES):
                continue
            elif not is_name(entry.name):
                log.warning("adapter folder %r is left out: it cannot be an adapter's name", entry.name)
            else:
                adapters[entry.name] = Listed(FolderSource(Path(entry.path)), stamp)
        return Listing(adapters, setups)

    def _scan_registry(self, place: str) -> Listing:
        registry, found = self._registries[place], dict[str, Listed]()
        filters = {"author": place.removeprefix(HUB), "limit": LISTED} if place.startswith(HUB) else {}
        for artefact in registry.search(**filters):
            name = artefact.name.rpartition("/")[2]
            if is_name(name):
                source = RegistrySource(registry, place, artefact.name, artefact.revision)
                found.setdefault(name, Listed(source, artefact.revision))
        return Listing(found)

    def _find(self, folder: Path, name: str) -> Source | None:
        path = folder / name
        is_there = is_adapter(path) and ("/" not in name or is_setup(path.parent))
        return FolderSource(path) if is_there else None

    def _find_there(self, place: str, name: str) -> Source | None:
        registry, full = self._registries[place], _full(place, name)
        try:
            artefact = registry.find(full)
        except (AdapterNotFound, InvalidInput):
            return None
        return RegistrySource(registry, place, full, artefact.revision)

    def _read(
        self,
        source: Source,
        name: str,
        build: Callable[[Checkpoint], T],
        known: Failure | None,
        on_begin: Callable[[], None],
    ) -> Reading[T]:
        """Files are read one after the other: of a folder that was replaced in between, some may be of either."""
        on_begin()
        for _ in range(MAX_READS):
            edition = source.edition()
            stamp = edition[0]
            if known is not None and known.stamp == stamp:
                return Reading(stamp, known.error)
            try:
                found: T | AdapterRefused = self._built(source, name, build)
            except AdapterRefused as error:
                found = error
            if (now := source.edition()) in (edition, GONE):  # or it is gone by now, which nobody reads again
                return Reading(stamp, found, now == GONE)
        raise Unavailable(f"the files of adapter {name!r} changed whenever they were read; try again later")

    def _built(self, source: Source, name: str, build: Callable[[Checkpoint], T]) -> T:
        with source.opened() as folder:
            checkpoint = read_checkpoint(
                folder, name=name, max_bytes=self._max_bytes, pickle_timeout_s=self._pickle_timeout_s
            )
            return build(checkpoint)


def _full(place: str, name: str) -> str:
    """The name that a registry knows an adapter by."""
    return f"{place.removeprefix(HUB)}/{name}" if place.startswith(HUB) else name


def _opened(address: str) -> Registry:
    from adapters_cache.sharing.origins import Address, open_registry  # brings the hub's client along

    registry: Any = open_registry(Address(HUB if address.startswith(HUB) else address, address.removeprefix(HUB)))
    return cast(Registry, registry)
