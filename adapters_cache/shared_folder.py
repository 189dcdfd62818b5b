"""The folder that replicas share: its log of orders and the files of versions. Everything here blocks."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from adapters_cache.orders import Order, OrderLog
from adapters_cache.version_files import VersionFiles
from server.errors import InvalidInput, Unavailable
from server.folders import PUBLISH_LOCK


class MovedMeanwhile(Unavailable):
    """Another replica gave an order for the name since one looked."""


class SharedFolder:
    """In one thread, but for `log.last`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.log, self._versions = OrderLog(folder), VersionFiles(folder)

    def begin(self, stamps: Mapping[str, str]) -> tuple[dict[str, Order], list[str]]:
        """The orders of all names that can be followed, and the names whose folders were replaced without an order.

        stamps   of the folders now; a version that is neither there nor kept cannot be followed
        Raises OSError.
        """
        orders = self.log.read()
        changed = [name for name, order in orders.items() if order.digest and order.stamp != stamps.get(name)]
        for name in changed:
            order = orders[name]
            if self._versions.find(name, order.stamps.get(order.digest, "")) is None:
                del orders[name]
        return orders, changed

    def look(self, name: str) -> tuple[dict[str, Order], Order | None]:
        """The others' new orders, and the one that counts for a name. Raises OSError."""
        return self.log.read(), self.log.last.get(name)

    def put(self, order: Order, seen: Order | None) -> None:
        """Keep the files that an order needs, write it, and remove those that it does not.

        seen   the order for the name that this one was made from
        Raises OSError, MovedMeanwhile where another one counts by now, and InvalidInput for a version that other
        replicas could not have; then nothing is written.
        """
        with self.log.alone():  # or another replica would remove what is kept here, for its order does not name it
            if self.log.last.get(order.name) != seen:
                raise MovedMeanwhile(f"adapter {order.name!r} moved meanwhile at another replica; try again")
            for digest in filter(None, (order.digest, *order.shares)):
                stamp = order.stamps.get(digest)
                if stamp is None or not self._versions.keep(order.name, stamp):
                    raise InvalidInput(
                        f"the files of version {digest[:12]} of {order.name!r} are not in publish_folder any more, so"
                        " that other replicas could not have it; publish it again"
                    )
            self.log.append(order)
            self._versions.prune(order.name, order.stamps.values())

    def unload(self, name: str) -> None:
        """Order that a name is unloaded, whatever was ordered before, and remove its versions. Raises OSError."""
        with self.log.alone():
            self.log.append(Order(name))
            self._versions.prune(name, ())

    def forget(self, name: str) -> None:
        """Unload a name whose folder is gone, unless it is just being published. Raises OSError."""
        lock = tried_lock(self._folder / PUBLISH_LOCK)
        if lock is None:
            return
        with lock, self.log.alone():
            if not (self._folder / name).exists():
                if (last := self.log.last.get(name)) is not None and last.digest:
                    self.log.append(Order(name))
                self._versions.prune(name, ())


def tried_lock(path: Path) -> ExitStack | None:
    """A lock that is released on exit; None while somebody else has it. Raises OSError."""
    with ExitStack() as held:
        file = held.enter_context(path.open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return held.pop_all()
