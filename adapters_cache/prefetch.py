"""Adapters that will be asked for: brought a few at a time, so that those who wait already do not wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable


class Prefetcher:
    """Names in the order in which they came. On the event loop's thread.

    bring   brings one adapter; raises nothing but for cancellation
    """

    def __init__(self, bring: Callable[[str], Awaitable[None]], num_at_once: int) -> None:
        self._bring, self._num_at_once = bring, num_at_once
        self._names: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, names: Iterable[str]) -> None:
        """Bring these too, soon."""
        self._names |= dict.fromkeys(names)
        for _ in range(min(len(self._names), self._num_at_once - len(self._tasks))):
            task = asyncio.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while self._names:
            name = next(iter(self._names))
            del self._names[name]
            await self._bring(name)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
