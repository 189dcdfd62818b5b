"""Threads that compute come and go without slowing down the one that serves.

OpenMP gives every thread that has run a parallel loop workers of its own, which stay as long as it does. As soon as all
of them together are more than there are cores, no worker spins any more while it waits for its next piece, and a wait
becomes a sleep: passes over small batches take twice as long.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

Result = TypeVar("Result")


async def run_alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """As asyncio.to_thread, in a thread that ends with the call, and its workers with it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not done.cancelled():
            set_outcome(outcome)

    def work() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:
            loop.call_soon_threadsafe(tell, done.set_exception, error)
        else:
            loop.call_soon_threadsafe(tell, done.set_result, result)

    threading.Thread(target=work, daemon=True).start()
    return await done


def full_pool(num_threads: int) -> ThreadPoolExecutor:
    """A pool whose threads all run already: one that grows when it is busy looks like a leak for days."""
    pool = ThreadPoolExecutor(num_threads, "worker")
    together = threading.Barrier(num_threads)
    wait([pool.submit(together.wait) for _ in range(num_threads)])
    return pool
