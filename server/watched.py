"""Files that may change while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

Stamp = tuple[tuple[int, int, int] | None, ...]


class Watched:
    """Calls `on_change` after any of the files has changed: other bytes, another time, or another file in its place.

    Make it before the files are read for the first time: what they are then counts as known.

    every_s   0 never looks
    """

    def __init__(self, paths: Sequence[Path], every_s: float, on_change: Callable[[], Awaitable[None]]) -> None:
        self._paths = paths
        self._every_s = every_s
        self._on_change = on_change
        self._known = self._stamp()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._every_s:
            self._task = asyncio.create_task(self._look())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            now = await asyncio.to_thread(self._stamp)
            if now != self._known:
                self._known = now
                await self._on_change()

    def _stamp(self) -> Stamp:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
