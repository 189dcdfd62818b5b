"""Threads for work that may block: a few at a time, one per name, and none that hangs keeps others from theirs."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from server.errors import Unavailable
from server.memory import compute_with

T = TypeVar("T")
MAX_GIVEN_UP = 32  # threads that nobody waits for any more; each holds memory until what it waits for ends
RETRY_AFTER_S = 5.0


class Workers:
    """On the event loop's thread; the work itself runs in others.

    Whatever is done about one name runs in one thread at a time, also after its caller has given up. A thread whose
    caller has given up makes room for another: what hangs, a network file system say, costs its own callers only.
    """

    def __init__(self, place: str, num_threads: int) -> None:
        """place   what is read, for messages"""
        self._place = place
        self._threads = _Threads(place)
        self._permits = asyncio.Semaphore(num_threads)
        self._busy: dict[str, asyncio.Future[Any]] = {}  # by name, until the thread has ended
        self._given_up = 0

    async def run(self, name: str, work: Callable[..., T], *arguments: object) -> T:
        """What `work` gives or raises. Cancelling gives up waiting: work that has begun ends by itself.

        Raises Unavailable where so much hangs that nothing more is begun.
        """
        while (earlier := self._busy.get(name)) is not None:
            await asyncio.wait([earlier])
        if self._given_up >= MAX_GIVEN_UP:
            raise Unavailable(
                f"{self._place} does not answer: {self._given_up} reads of it hang; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._busy[name] = done
        try:
            await self._permits.acquire()
        except BaseException:
            del self._busy[name]
            done.cancel()
            raise
        try:
            self._threads.submit(lambda: _run(done, work, arguments))
        except RuntimeError as error:
            del self._busy[name]
            self._permits.release()
            done.cancel()
            raise Unavailable(f"{self._place}: no thread can be had; try again later") from error
        return await self._wait(name, done)

    def is_busy(self, name: str) -> bool:
        """Whether a thread is at work for `name`."""
        return name in self._busy

    async def _wait(self, name: str, done: asyncio.Future[T]) -> T:
        has_left = False

        def ended(_: asyncio.Future[T]) -> None:
            del self._busy[name]
            if has_left:
                self._given_up -= 1
            else:
                self._permits.release()
            done.exception()  # seen, even if the caller has left

        done.add_done_callback(ended)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not done.done():
                has_left = True
                self._given_up += 1
                self._permits.release()
            raise


class _Threads:
    """Threads that wait for work, as many as there was work at the same time. `submit` in one thread only.

    Daemons: one that hangs does not keep the process from its end.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, work: Callable[[], None]) -> None:
        """Raises RuntimeError where no thread can be had."""
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._work.put(work)

    def _run(self) -> None:
        compute_with(1)  # without workers of its own, see server/threads.py
        while True:
            self._work.get()()
            self._idle.release()


def _run(done: asyncio.Future[Any], work: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    outcome: Any
    try:
        outcome, tell = work(*arguments), done.set_result
    except BaseException as error:
        outcome, tell = error, done.set_exception
    with suppress(RuntimeError):  # the loop has ended meanwhile
        done.get_loop().call_soon_threadsafe(tell, outcome)
