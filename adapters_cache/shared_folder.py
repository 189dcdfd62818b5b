"""The folder that replicas share: its log of orders and the files of versions. Everything here blocks."""

from __future__ import annotations

import fcntl
from contextlib import ExitStack
from pathlib import Path

from adapters_cache.orders import Order, OrderLog
from adapters_cache.version_files import VersionFiles
from server.errors import InvalidInput
from server.folders import PUBLISH_LOCK


class SharedFolder:
    """In one thread, but for `log.last`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.log, self._versions = OrderLog(folder), VersionFiles(folder)

    def put(self, order: Order) -> dict[str, Order]:
        """Keep the files that an order needs, write it, and remove those that it does not; the others' new orders.

        Raises OSError, and InvalidInput for a version that other replicas could not have; then nothing is written.
        """
        for digest in filter(None, (order.digest, *order.shares)):
            stamp = order.stamps.get(digest)
            if stamp is None or not self._versions.keep(order.name, stamp):
                raise InvalidInput(
                    f"the files of version {digest[:12]} of {order.name!r} are not in publish_folder any more, so that"
                    " other replicas could not have it; publish it again"
                )
        changed = self.log.append(order)
        self._versions.prune(order.name, order.stamps.values())
        return changed

    def forget(self, name: str) -> dict[str, Order]:
        """Unload a name whose folder is gone, unless it is just being published; the others' new orders.

        Raises OSError.
        """
        changed = self.log.read()
        lock = tried_lock(self._folder / PUBLISH_LOCK)
        if lock is None:
            return changed
        with lock:
            if not (self._folder / name).exists():
                if (last := self.log.last.get(name)) is not None and last.digest:
                    changed |= self.log.append(Order(name))
                self._versions.prune(name, ())
        return changed


def tried_lock(path: Path) -> ExitStack | None:
    """A lock that is released on exit; None while somebody else has it. Raises OSError."""
    with ExitStack() as held:
        file = held.enter_context(path.open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return held.pop_all()
