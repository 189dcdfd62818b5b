"""A replica's word to the members, every second, whatever its server is busy with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import Protocol

from server.ray.members import BEAT_S

log = logging.getLogger("ray.serve")


class Said(Protocol):
    """What a replica says; see `Membership`."""

    def beat(self, address: str, known: Collection[str]) -> Collection[str]: ...

    def leave(self, address: str) -> None: ...


class Beats:
    """A thread of its own: a check of health takes as long as a busy server takes to answer.

    takes_calls   whether the server is to be listed; answers at once
    tell          has the server know these replicas; may raise OSError
    """

    def __init__(
        self,
        members: Said,
        address: str,
        takes_calls: Callable[[], bool],
        tell: Callable[[Collection[str]], None],
        every_s: float = BEAT_S,
    ) -> None:
        self._members, self._address = members, address
        self._takes_calls, self._tell = takes_calls, tell
        self._every_s = every_s
        self._known: tuple[str, ...] = ()
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
                self._note(self._members.beat(self._address, self._known))
            elif is_listed:
                is_listed = False
                self._members.leave(self._address)
            self._over.wait(self._every_s)

    def _note(self, addresses: Collection[str]) -> None:
        """None leaves what the server knows as it was."""
        if not addresses or tuple(addresses) == self._known:
            return
        try:
            self._tell(addresses)
            self._known = tuple(addresses)
        except OSError as error:
            log.warning("the list of replicas is as it was: %s", error)
