"""Stage 0, streams: many requests of one call at a time, replies as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from server.errors import InvalidInput

# Beyond this many unanswered messages a stream is not read on: the caller feels it as HTTP/2 back pressure.
MAX_IN_FLIGHT = 64

In = TypeVar("In")
Out = TypeVar("Out")


async def answer_stream(
    messages: AsyncIterator[In],
    answer: Callable[[In], Awaitable[Out]],
    write: Callable[[Out], Awaitable[None]],
    max_in_flight: int = MAX_IN_FLIGHT,
) -> None:
    """Answer every message; returns when the caller has sent all and each reply is written.

    What is no message ends the reading: those before it are answered, then its InvalidInput is raised. However else it
    ends (a broken stream, a cancelled call, another error of `messages`), no child task outlives it.
    """
    room = asyncio.Semaphore(max_in_flight)
    replies: asyncio.Queue[Out | None] = asyncio.Queue()  # bounded by `room`
    children: set[asyncio.Task[None]] = set()

    async def reply_to(message: In) -> None:
        replies.put_nowait(await answer(message))

    async def read() -> None:
        try:
            async for message in messages:
                await room.acquire()
                child = asyncio.create_task(reply_to(message))
                children.add(child)
                child.add_done_callback(children.discard)
        except InvalidInput:
            await _all(children)
            raise
        await _all(children)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: replies.put_nowait(None))
    try:
        while (reply := await replies.get()) is not None:
            await write(reply)
            room.release()
        await reader  # raises what ended the reading early
    finally:
        await _cancel({reader, *children})


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await _all(tasks)


async def _all(tasks: set[asyncio.Task[None]]) -> None:
    """Until every one has ended, however."""
    if tasks:
        await asyncio.wait(tasks)
