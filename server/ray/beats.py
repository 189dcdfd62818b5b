"""A replica's word to the members, every second, whatever its server is busy with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from server.ray.members import BEAT_S

log = logging.getLogger("ray.serve")


class Said(Protocol):
    """What a replica says; see `Membership`."""

    def beat(self, address: str, known: Collection[str], http: str) -> Mapping[str, str]: ...

    def leave(self, address: str) -> None: ...


class Beats:
    """A thread of its own: a check of health takes as long as a busy server takes to answer.

    http          host:port of the server's metrics
    takes_calls   whether the server is to be listed; answers at once
    tell          makes these replicas known, each with its metrics; may raise OSError
    """

    def __init__(
        self,
        members: Said,
        address: str,
        http: str,
        takes_calls: Callable[[], bool],
        tell: Callable[[Mapping[str, str]], None],
        every_s: float = BEAT_S,
    ) -> None:
        self._members, self._address, self._http = members, address, http
        self._takes_calls, self._tell = takes_calls, tell
        self._every_s = every_s
        self._known: Mapping[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, name="adapterd members", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave the list. Blocks for as long as the members take to answer."""
        self._over.set()
        self._thread.join()
        self._members.leave(self._address)

    def _keep_telling(self) -> None:
        is_listed = True
        while not self._over.is_set():
            if self._takes_calls():
                is_listed = True
                self._note(self._members.beat(self._address, self._known, self._http))
            elif is_listed:
                is_listed = False
                self._members.leave(self._address)
            self._over.wait(self._every_s)

    def _note(self, replicas: Mapping[str, str]) -> None:
        """None leaves what is known as it was."""
        if not replicas or replicas == self._known:
            return
        try:
            self._tell(replicas)
            self._known = replicas
        except OSError as error:
            log.warning("the list of replicas is as it was: %s", error)
