"""The files of the versions of an adapter, beside the folders that are served: <folder>/.versions/<name>/<stamp>/.

Hard links, or copies where there are none, of what a folder held when it had that stamp. Everything here blocks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapters_cache.sources import FolderSource
from server.folders import folder_beside

VERSIONS = ".versions"


@dataclass(frozen=True, slots=True)
class VersionSource(FolderSource):
    """folder   that the adapter itself lies in"""

    folder: Path

    @property
    def place(self) -> str:
        return str(self.folder)


class VersionFiles:
    """From any thread or process: what is kept appears as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, stamp: str) -> VersionSource | None:
        """The version, if it is kept and nothing was written into it since."""
        source = VersionSource(self._path(name, stamp), self.folder)
        return source if stamp and source.stamp() == stamp else None

    def keep(self, name: str, stamp: str = "") -> bool:
        """Keep what the folder of an adapter holds; whether it is kept now. Raises OSError.

        stamp   that the folder has to have, unless that version is kept already
        """
        if stamp and self.find(name, stamp) is not None:
            return True
        source = FolderSource(self.folder / name)
        found = source.stamp()
        if not found or found != (stamp or found):
            return False
        into = self._path(name, found)
        if self.find(name, found) is not None:
            return True
        with folder_beside(into) as aside:
            _link_all(source.path, aside)
            if FolderSource(aside).stamp() != found or source.stamp() != found:
                return False
            aside.chmod(0o755)
            shutil.rmtree(into, ignore_errors=True)  # somebody has written into it
            with suppress(OSError):  # another replica was first
                aside.rename(into)
        return self.find(name, found) is not None

    def prune(self, name: str, stamps: Collection[str]) -> None:
        """Remove the versions of a name that have other stamps than these."""
        kept = self.folder / VERSIONS / name
        with suppress(OSError):  # another replica was first, or something is in it still
            for stamp in os.listdir(kept):
                if not stamp.startswith(".") and stamp not in stamps:
                    shutil.rmtree(kept / stamp, ignore_errors=True)
            kept.rmdir()

    def _path(self, name: str, stamp: str) -> Path:
        return self.folder / VERSIONS / name / stamp


def _link_all(source: Path, into: Path) -> None:
    """Give `into` every file below `source`, with the times that a stamp tells of. Raises OSError."""
    with os.scandir(source) as entries:
        found = list(entries)
    for entry in found:
        path = into / entry.name
        if entry.is_dir():
            path.mkdir()
            _link_all(Path(entry.path), path)
            stat = entry.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        elif entry.is_file():
            file = os.path.realpath(entry.path)
            try:
                os.link(file, path)
            except OSError:  # another file system, or one without links
                shutil.copy2(file, path)
