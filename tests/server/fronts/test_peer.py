from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from server import errors
from server.errors import AdapterdError, Internal, Overloaded, Unavailable
from server.fronts.peer import Peer

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AdapterdError)]


class Pair:
    """`near` calls what `far` handles."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., Awaitable[Any]]] = {}
        self.far_is_gone, self.near_is_gone = asyncio.Event(), asyncio.Event()
        self.near = Peer({}, self.far_is_gone.set)
        self.far = Peer(self.handlers, self.near_is_gone.set)

    async def open(self) -> None:
        near, far = socket.socketpair()
        await self.near.open(near)
        await self.far.open(far)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    await pair.open()
    yield pair
    pair.near.close()
    await asyncio.gather(pair.far_is_gone.wait(), pair.near_is_gone.wait())


async def test_calls_at_the_same_time_get_their_own_results(pair: Pair) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def wait(number: int) -> int:
        await gates[number].wait()
        return number * 10

    pair.handlers["wait"] = wait
    calls = [asyncio.create_task(pair.near.call("wait", number)) for number in range(3)]
    for gate in reversed(gates):
        await asyncio.sleep(0)
        gate.set()
    assert await asyncio.gather(*calls) == [0, 10, 20]


async def test_messages_larger_than_the_sockets_buffer_arrive(pair: Pair) -> None:
    async def double(data: bytes) -> bytes:
        return data * 2

    pair.handlers["double"] = double
    data = bytes(range(256)) * 20_000
    assert await asyncio.gather(*(pair.near.call("double", data) for _ in range(3))) == [data * 2] * 3


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_cross_unchanged(pair: Pair, kind: type[AdapterdError]) -> None:
    more: dict[str, Any] = {"retry_after_s": 2.5} if kind is Overloaded else {}
    raised = kind("5 exceeds 4", limit="4", **more)

    async def fail() -> None:
        raise raised

    pair.handlers["fail"] = fail
    with pytest.raises(AdapterdError) as caught:
        await pair.near.call("fail")
    assert type(caught.value) is kind
    assert vars(caught.value) == vars(raised) and caught.value.args == raised.args


async def test_a_strangers_error_stays_in_the_log(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("secret")

    pair.handlers["fail"] = fail
    with caplog.at_level(logging.ERROR), pytest.raises(Internal) as caught:
        await pair.near.call("fail")
    assert "secret" not in caught.value.message and "secret" in caplog.text
    assert caught.value.metadata["error_id"] in caplog.text


async def test_cancelling_a_call_cancels_its_handler(pair: Pair) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    pair.handlers["hang"] = hang
    call = asyncio.create_task(pair.near.call("hang"))
    await began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 5)


async def test_the_end_of_either_side_ends_all_calls(pair: Pair) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    pair.handlers["hang"] = hang
    call = asyncio.create_task(pair.near.call("hang"))
    await began.wait()
    pair.far.close()
    with pytest.raises(Unavailable):
        await call
    await asyncio.wait_for(ended.wait(), 5)
    with pytest.raises(Unavailable):
        await pair.near.call("hang")


async def test_what_is_sent_in_one_turn_of_the_loop_is_one_frame(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[int] = []
    dumps = __import__("pickle").dumps

    def noting(messages: list[Any], protocol: int) -> bytes:
        frames.append(len(messages))
        data: bytes = dumps(messages, protocol=protocol)
        return data

    async def echo(value: int) -> int:
        return value

    pair.handlers["echo"] = echo
    monkeypatch.setattr("server.fronts.channel.pickle.dumps", noting)
    await asyncio.gather(*(pair.near.call("echo", value) for value in range(20)))
    assert frames == [20, 20]


async def test_a_call_that_is_left_before_it_begins_leaves_nothing(pair: Pair) -> None:
    began: list[int] = []

    async def work(number: int) -> None:
        began.append(number)
        await asyncio.sleep(60)

    pair.handlers["work"] = work
    calls = [asyncio.create_task(pair.near.call("work", number)) for number in range(5)]
    await asyncio.sleep(0)  # sent, and not read yet
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert pair.far.num_serving == 0 and not began
