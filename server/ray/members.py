"""Which replicas of an application live: each says so every second, and hears of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

NAMESPACE = "adapterd"
BEAT_S = 1.0  # between a replica's words
CALL_S = 2.0  # for the answer to one
SETTLE_S = 4.0  # after its start; whoever lives has spoken by then, or is in the list of one that has
GONE_S = 8.0  # without a word: two that were lost, and one that is late; clients find out by the connection


class Members:
    """Runs as an actor, which Ray starts again where it dies: then it knows nobody, and does not pretend to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seen: dict[str, float] = {}
        self._known: dict[str, list[str]] = {}  # each one's list, as it said last
        self._http: dict[str, str] = {}

    def beat(self, address: str, known: Collection[str] = (), http: str = "") -> dict[str, str] | None:
        """Take note that a replica lives; gives `listed`.

        known   its list; just started, those in it are taken to live until they have had time to speak
        http    host:port of its metrics
        """
        now = self._clock()
        if now - self._began < SETTLE_S:
            for other in known:
                self._seen.setdefault(other, now)
        self._seen[address] = now
        self._known[address] = sorted(known)
        self._http[address] = http
        return self.listed()

    def leave(self, address: str) -> dict[str, str] | None:
        """Take note that a replica takes no new calls; gives `listed`."""
        self._seen.pop(address, None)
        self._known.pop(address, None)
        return self.listed()

    def listed(self) -> dict[str, str] | None:
        """host:port of all that live, sorted, each with that of its metrics; None where that is not known yet."""
        now = self._clock()
        self._seen = {address: at for address, at in self._seen.items() if now - at < GONE_S}
        self._known = {address: known for address, known in self._known.items() if address in self._seen}
        self._http = {address: http for address, http in self._http.items() if address in self._seen}
        if now - self._began < SETTLE_S:
            return None
        return {address: self._http.get(address, "") for address in sorted(self._seen)}

    def agreed(self) -> dict[str, str] | None:
        """As `listed`; None too where one of them has another list."""
        listed = self.listed()
        return listed if listed and all(self._known.get(address) == [*listed] for address in listed) else None


class Membership:
    """One replica's words to the members of an application, or a command's questions. Not for several threads."""

    def __init__(self, application: str) -> None:
        self._name = f"members-of-{application}"
        self._actor: Any = None

    def beat(self, address: str, known: Collection[str], http: str) -> Mapping[str, str]:
        """All that live, this one among them; none where that is not known, or nobody answers."""
        return self._ask("beat", address, [*known], http) or {}

    def agreed(self) -> Mapping[str, str]:
        """All that live, once all of them know each other; none before."""
        return self._ask("agreed") or {}

    def leave(self, address: str) -> None:
        """The last one ends the actor."""
        if self._ask("leave", address) == {}:
            self.end()

    def end(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
            self._actor = None

    def start(self) -> None:
        """Have an actor, or find the one that is there. Raises RayError."""
        self._actor = (
            ray.remote(Members)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
            )
            .remote()
        )

    def _ask(self, method: str, *arguments: str | Collection[str]) -> dict[str, str] | None:
        """None where nobody answers: there is another word in a second."""
        try:
            if self._actor is None:
                self.start()
            found: dict[str, str] | None = ray.get(getattr(self._actor, method).remote(*arguments), timeout=CALL_S)
        except RayError:
            self._actor = None
            return None
        return found
