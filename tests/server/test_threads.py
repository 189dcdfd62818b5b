"""Work in a thread that ends with it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from server.threads import run_alone


async def test_it_gives_the_result_and_leaves_no_thread() -> None:
    before = threading.active_count()
    name = await run_alone(lambda suffix: threading.current_thread().name + suffix, "!")
    assert name != threading.current_thread().name + "!"
    for _ in range(100):
        if threading.active_count() == before:
            break
        await asyncio.sleep(0.01)
    assert threading.active_count() == before


async def test_it_raises_what_was_raised() -> None:
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await run_alone(fails)


async def test_a_caller_who_has_left_is_not_told() -> None:
    began, go_on = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait(5)

    task = asyncio.create_task(run_alone(work))
    await asyncio.to_thread(began.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.sleep(0.05)
