"""The origin tier: folders on this machine whose sub-folders are adapters, read in worker threads.

Whatever is done about one name runs in one thread at a time, also after its caller has given up: a folder that hangs
holds up its own name and nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from adapters_cache.failures import Failure, FolderState
from adapters_cache.formats.adapterhub import is_adapter, read_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.setups import is_setup
from adapters_cache.registry import is_name
from server.errors import AdapterRefused
from server.memory import compute_with

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What a folder held, or why it is refused; `state` is the folder's as it was before it was read."""

    state: FolderState
    found: T | AdapterRefused


class FolderOrigin:
    """Adapters by the name of their folder; of two with one name the earlier folder's counts."""

    def __init__(
        self, folders: Sequence[Path], *, max_adapter_bytes: int, max_concurrent_loads: int, load_timeout_s: float
    ) -> None:
        self._folders = tuple(folders)
        self._max_bytes = max_adapter_bytes
        # a file that hangs its reader is told to be that file's fault, before the load is given up
        self._pickle_timeout_s = load_timeout_s / 2
        # without workers of their own, see server/threads.py
        self._threads = ThreadPoolExecutor(max_concurrent_loads, "origin", compute_with, (1,))
        self._busy: dict[str, asyncio.Future[Any]] = {}  # by name, until the thread has ended

    async def scan(self) -> dict[str, Path]:
        """Give every adapter there is."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._scan)

    async def find(self, name: str) -> Path | None:
        """Give the folder of one adapter. Names that cannot be adapters are not looked for."""
        if not is_name(name):
            return None
        return await self._run(name, self._find, name)

    async def read(
        self,
        source: Path,
        name: str,
        build: Callable[[Checkpoint], T],
        *,
        known: Failure | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> Reading[T]:
        """Read a folder and build from it, both in a worker thread. Raises what the format and `build` raise.

        known     a folder that is still as it was then is not read: the reading's `found` is `known.error` itself
        on_begin  called in the worker thread before it looks at the folder
        Cancelling gives up waiting: a read that has begun ends by itself.
        """
        return await self._run(name, self._read, source, name, build, known, on_begin)

    async def _run(self, name: str, work: Callable[..., T], *arguments: object) -> T:
        while (earlier := self._busy.get(name)) is not None:
            await asyncio.wait([earlier])
        job = self._threads.submit(work, *arguments)
        done = asyncio.wrap_future(job)
        self._busy[name] = done
        done.add_done_callback(lambda _: self._ended(name, done))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            job.cancel()  # does nothing once it has begun
            raise

    def _ended(self, name: str, done: asyncio.Future[Any]) -> None:
        del self._busy[name]
        if not done.cancelled():
            done.exception()  # seen, even if the caller has left

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
        found = (folder / name for folder in self._folders if is_adapter(folder / name))
        return next((path for path in found if "/" not in name or is_setup(path.parent)), None)

    def _read(
        self,
        source: Path,
        name: str,
        build: Callable[[Checkpoint], T],
        known: Failure | None,
        on_begin: Callable[[], None],
    ) -> Reading[T]:
        on_begin()
        state = _state(source)
        if known is not None and known.state == state:
            return Reading(state, known.error)
        try:
            checkpoint = read_checkpoint(
                source, name=name, max_bytes=self._max_bytes, pickle_timeout_s=self._pickle_timeout_s
            )
            return Reading(state, build(checkpoint))
        except AdapterRefused as error:
            return Reading(state, error)


def _state(source: Path) -> FolderState:
    """Tells one content of a folder from another without reading it; empty where there is no folder."""
    try:
        files = sorted(source.iterdir())
        return tuple((path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files)
    except OSError:
        return ()
