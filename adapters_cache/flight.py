"""Single flight: one load that any number of callers wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from adapters_cache.host import HostLease
from server.errors import Unavailable


class Flight:
    """A load under way. Callers come and go; the load goes on, and holds its adapter until the last has taken it.

    generation   of the name when the load was asked for
    is_explicit  asked for by Load, which moves the name to whatever is there
    digest       the version that is asked for, where it is not the one that the name points to
    percent      of the requests that what is found gets; below 100 it becomes a version beside
    has_begun    somebody has looked at the origin: what changes from now on may be missed
    is_reading   the origin is being read
    stamp        of the origin then
    """

    def __init__(
        self,
        generation: int,
        load: Callable[[Flight], Coroutine[Any, Any, HostLease]],
        on_end: Callable[[Flight], None],
        *,
        is_explicit: bool,
        digest: str = "",
        percent: int = 100,
    ) -> None:
        self.generation = generation
        self.digest = digest
        self.percent = percent
        self.is_reading = False
        self.stamp = ""
        self.is_explicit = is_explicit
        self.has_begun = False
        self._num_waiting = 0
        self._on_end = on_end
        self._task = asyncio.create_task(load(self))
        self._task.add_done_callback(self._ended)

    def begin(self) -> None:
        """From any thread."""
        self.has_begun = self.is_reading = True

    def is_overtaken(self, served: int) -> bool:
        """Whether something newer has moved the name; `served` is the generation of what it points to."""
        return self.generation <= served if self.is_explicit else self.generation < served

    async def wait(self) -> HostLease:
        """Wait for the load; the lease is the flight's own and lasts until the caller next gives up control.

        Raises what the load raised. Cancelling the caller does not cancel the load.
        """
        self._num_waiting += 1
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise Unavailable("the server is stopping; the adapter was not loaded") from None
        finally:
            self._num_waiting -= 1
            if self._num_waiting == 0 and self._task.done():
                # later: the caller is about to take its own lease
                asyncio.get_running_loop().call_soon(self._let_go)

    async def cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def _ended(self, task: asyncio.Task[HostLease]) -> None:
        self._on_end(self)
        if not task.cancelled():
            task.exception()  # seen, even if every caller has left
        if self._num_waiting == 0:
            self._let_go()

    def _let_go(self) -> None:
        if not self._task.cancelled() and self._task.exception() is None:
            self._task.result().release()
