"""answer_stream, without gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.api.stream import answer_stream
from server.errors import InvalidInput


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_every_message_is_answered_once() -> None:
    written: list[int] = []

    async def answer(number: int) -> int:
        return number

    async def write(reply: int) -> None:
        written.append(reply)

    await answer_stream(numbers(200), answer, write, max_in_flight=8)
    assert sorted(written) == list(range(200))


async def test_a_full_stream_is_not_read_on_until_a_reply_is_written() -> None:
    num_read = 0
    may_write = asyncio.Event()

    async def messages() -> AsyncIterator[int]:
        nonlocal num_read
        for number in range(20):
            num_read += 1
            yield number

    async def answer(number: int) -> int:
        return number

    async def write(reply: int) -> None:
        await may_write.wait()

    stream = asyncio.create_task(answer_stream(messages(), answer, write, max_in_flight=4))
    await settle()
    assert num_read == 5  # four in flight and one at the door
    may_write.set()
    await stream
    assert num_read == 20


async def test_cancelling_ends_every_child() -> None:
    running = 0

    async def answer(number: int) -> int:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1
        return number

    async def write(reply: int) -> None:
        raise AssertionError("nothing is answered")

    stream = asyncio.create_task(answer_stream(numbers(6), answer, write))
    await settle()
    assert running == 6
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert running == 0


async def test_an_error_of_the_messages_is_raised_and_ends_every_child() -> None:
    running = 0

    async def messages() -> AsyncIterator[int]:
        yield 1
        await settle()
        raise ValueError("broken stream")

    async def answer(number: int) -> int:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1
        return number

    async def write(reply: int) -> None: ...

    with pytest.raises(ValueError, match="broken stream"):
        await answer_stream(messages(), answer, write)
    assert running == 0


async def test_what_is_no_message_ends_the_reading_and_those_before_it_are_answered() -> None:
    num_read, is_refused = 0, asyncio.Event()
    written: list[int] = []

    async def messages() -> AsyncIterator[int]:
        nonlocal num_read
        for number in range(5):
            num_read += 1
            if number == 3:
                is_refused.set()
                raise InvalidInput("garbage")
            yield number

    async def answer(number: int) -> int:
        await is_refused.wait()
        await settle()
        return number

    async def write(reply: int) -> None:
        written.append(reply)

    with pytest.raises(InvalidInput, match="garbage"):
        await answer_stream(messages(), answer, write)
    assert (sorted(written), num_read) == ([0, 1, 2], 4)


async def settle() -> None:
    """Let everything that can run now run."""
    for _ in range(50):
        await asyncio.sleep(0)
