"""The origin tier: folders on this machine whose sub-folders are adapters, read in worker threads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from adapters_cache.formats.adapterhub import is_adapter, read_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.registry import is_name

log = logging.getLogger(__name__)
T = TypeVar("T")


class FolderOrigin:
    """Adapters by the name of their folder; of two with one name the earlier folder's counts."""

    def __init__(self, folders: Sequence[Path], *, max_adapter_bytes: int, max_concurrent_loads: int) -> None:
        self._folders = tuple(folders)
        self._max_bytes = max_adapter_bytes
        self._threads = ThreadPoolExecutor(max_concurrent_loads, thread_name_prefix="origin")

    async def scan(self) -> dict[str, Path]:
        """Give every adapter there is."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._scan)

    async def find(self, name: str) -> Path | None:
        """Give the folder of one adapter. Names that cannot be adapters are not looked for."""
        if not is_name(name):
            return None
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._find, name)

    async def read(self, source: Path, name: str, build: Callable[[Checkpoint], T]) -> T:
        """Read a folder and build from it, both in a worker thread. Raises what the format and `build` raise.

        Cancelling gives up waiting: a read that has begun ends by itself.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, source, name, build)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _scan(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self._folders:
            for path in sorted(folder.iterdir()):
                if not is_adapter(path):
                    continue
                if not is_name(path.name):
                    log.warning("adapter folder %r is left out: it cannot be an adapter's name", path.name)
                elif path.name in found:
                    log.warning("adapter %r is in two folders; the first one counts", path.name)
                else:
                    found[path.name] = path
        return found

    def _find(self, name: str) -> Path | None:
        return next((folder / name for folder in self._folders if is_adapter(folder / name)), None)

    def _read(self, source: Path, name: str, build: Callable[[Checkpoint], T]) -> T:
        return build(read_checkpoint(source, name=name, max_bytes=self._max_bytes))
