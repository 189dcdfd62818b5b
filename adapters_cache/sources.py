"""Where one adapter's files come from: a folder, or an adapter in a registry. Every method may block."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

GONE = ("", 0)  # the edition of what is not there


class Registry(Protocol):
    """The part of `adapters_cache.sharing`'s registries that is read from."""

    def find(self, name: str) -> Any: ...
    def pull(self, artefact: Any, into: Path) -> Path: ...
    def search(self, **filters: Any) -> Iterator[Any]: ...


class Source(Protocol):
    """place   what hangs together with it: the folder or registry that it lies in"""

    @property
    def place(self) -> str: ...

    def stamp(self) -> str:
        """Tells one content from another without reading it; empty where there is none."""

    def edition(self) -> tuple[str, int]:
        """The stamp, and what else tells whether anything was put in place or written during a read."""

    def opened(self) -> AbstractContextManager[Path]:
        """A local folder with its files."""


def stamp_of(entries: Iterable[os.DirEntry[str]]) -> str:
    """Of a folder with these entries. Raises OSError."""
    files = sorted((entry.name, (stat := _stat(entry)).st_size, stat.st_mtime_ns) for entry in entries)
    return hashlib.blake2b(repr(files).encode(), digest_size=12).hexdigest()


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    """Of what a link leads to; of the link, where that is nowhere."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class FolderSource:
    path: Path

    @property
    def place(self) -> str:
        return str(self.path.parent)

    def stamp(self) -> str:
        """Of name, size and time of every file."""
        try:
            with os.scandir(self.path) as entries:
                return stamp_of(entries)
        except OSError:
            return ""

    def edition(self) -> tuple[str, int]:
        """The folder itself too: files that are put back have the times that they had."""
        try:
            return self.stamp(), os.stat(self.path).st_ino
        except OSError:
            return GONE

    @contextmanager
    def opened(self) -> Iterator[Path]:
        yield self.path


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """What a registry's "main" of one name points to. `revision` is what a listing said last."""

    registry: Registry
    address: str  # of the registry, as configured
    name: str
    revision: str

    @property
    def place(self) -> str:
        return self.address

    def stamp(self) -> str:
        return self.revision

    def edition(self) -> tuple[str, int]:
        return self.revision, 0

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Downloaded for the time of reading, with its checksums verified; the disk tier keeps what is made of it."""
        with tempfile.TemporaryDirectory(prefix="adapterd-pull-") as folder:
            yield self.registry.pull(self.registry.find(self.name), Path(folder) / self.name.rpartition("/")[2])
