"""Looks at the origins now and then, and tells what is new, was replaced or is gone. On the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from adapters_cache.origin import Listed, Origin
from server.errors import AdapterdError

log = logging.getLogger(__name__)
REGISTRIES_S = 60.0  # between looks at registries: each is many requests
Listing = Mapping[str, Listed]
Tell = Callable[[Listing, Sequence[str]], Awaitable[None]]


class Changes:
    """What changed since it was told last. Pure.

    A new name is told at once: it is read when somebody asks for it. A replacement is told once two looks in a row
    agree, for a copy may be under way; so is what is gone.
    """

    def __init__(self, known: Listing) -> None:
        self._known = {name: listed.stamp for name, listed in known.items()}
        self._last: Mapping[str, str] = dict(self._known)

    def update(self, found: Listing) -> tuple[dict[str, Listed], list[str]]:
        """Give what is new or was replaced, and names that are gone."""
        last, self._last = self._last, {name: listed.stamp for name, listed in found.items()}
        changed = {
            name: listed
            for name, listed in found.items()
            if name not in self._known or (self._known[name] != listed.stamp == last.get(name))
        }
        gone = [name for name in self._known if name not in found and name not in last]
        self._known |= {name: listed.stamp for name, listed in changed.items()}
        for name in gone:
            del self._known[name]
        return changed, gone


class Watch:
    """One look after another until it is stopped. What cannot be looked at is left as it was."""

    def __init__(self, origin: Origin, tell: Tell, interval_s: float) -> None:
        self._origin, self._tell, self._interval_s = origin, tell, interval_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, folders: Listing, registries: Mapping[str, Listing]) -> None:
        """`folders` and `registries` are what was found so far."""
        if not self._interval_s:
            return
        self._begin(self._origin.scan, folders, self._interval_s)
        for address, listing in registries.items():
            self._begin(partial(self._origin.scan_registry, address), listing, max(self._interval_s, REGISTRIES_S))

    def _begin(self, look: Callable[[], Awaitable[Listing]], known: Listing, interval_s: float) -> None:
        self._tasks.append(asyncio.create_task(self._run(look, Changes(known), interval_s)))

    async def _run(self, look: Callable[[], Awaitable[Listing]], changes: Changes, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                changed, gone = changes.update(await look())
                if changed or gone:
                    await self._tell(changed, gone)
            except (OSError, AdapterdError) as error:
                log.warning("an origin cannot be looked at: %s", error)
            except Exception:
                log.exception("looking at an origin failed")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
