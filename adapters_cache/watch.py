"""Looks at the origins now and then, and tells what is new, was replaced or is gone. On the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from adapters_cache.origin import Listed, Listing, Origin
from server.errors import AdapterdError, Unavailable

log = logging.getLogger(__name__)
REGISTRIES_S = 60.0  # between looks at registries: each is many requests
MOST_SHARE = 0.05  # of a core for looking


@dataclass(frozen=True, slots=True)
class News:
    """What became of a place: adapters that are new or were replaced, names that are gone, whether setups changed."""

    place: str
    changed: Mapping[str, Listed]
    gone: Sequence[str]
    has_other_setups: bool


Tell = Callable[[News], Awaitable[Collection[str]]]


class Changes:
    """What changed at one place since it was told last. Pure.

    A new name is told at once: it is read when somebody asks for it. A replacement is told once two looks in a row
    agree, for a copy may be under way; so is what is gone.
    """

    def __init__(self, known: Listing) -> None:
        self._known = {name: listed.stamp for name, listed in known.adapters.items()}
        self._last: Mapping[str, str] = dict(self._known)
        self._setups = known.setups

    def update(self, place: str, found: Listing) -> News:
        """Raises Unavailable where everything is gone at once: a place that is not mounted looks like that."""
        if self._known and not found.adapters:
            raise Unavailable(f"origin {place!r} lists nothing any more; what it held is served on")
        last, self._last = self._last, {name: listed.stamp for name, listed in found.adapters.items()}
        changed = {
            name: listed
            for name, listed in found.adapters.items()
            if name not in self._known or (self._known[name] != listed.stamp == last.get(name))
        }
        gone = [name for name in self._known if name not in found.adapters and name not in last]
        self._known |= {name: listed.stamp for name, listed in changed.items()}
        for name in gone:
            del self._known[name]
        setups, self._setups = self._setups, found.setups
        return News(place, changed, gone, setups != found.setups)

    def again(self, name: str) -> None:
        """Tell this name again, as soon as two looks agree."""
        if name in self._known:
            self._known[name] = ""


class Watch:
    """One look after another until it is stopped. What cannot be looked at is left as it was."""

    def __init__(self, origin: Origin, tell: Tell, interval_s: float) -> None:
        """tell   gives names that it could not take over, which are told again"""
        self._origin, self._tell, self._interval_s = origin, tell, interval_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, listings: Mapping[str, Listing]) -> None:
        """`listings` are what was found so far, by place."""
        if self._interval_s:
            for place, listing in listings.items():
                self._tasks.append(asyncio.create_task(self._run(place, Changes(listing))))

    async def _run(self, place: str, changes: Changes) -> None:
        least_s = self._interval_s if self._origin.is_folder(place) else max(self._interval_s, REGISTRIES_S)
        looking_s = 0.0
        while True:
            await asyncio.sleep(max(least_s, looking_s / MOST_SHARE))
            try:
                started = time.monotonic()
                found = await self._origin.scan(place)
                looking_s = time.monotonic() - started
                news = changes.update(place, found)
                if news.changed or news.gone or news.has_other_setups:
                    for name in await self._tell(news):
                        changes.again(name)
            except (OSError, AdapterdError) as error:
                log.warning("an origin cannot be looked at: %s", error)
            except Exception:
                log.exception("looking at an origin failed")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
