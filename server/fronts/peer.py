"""Calls to the process at the other end of a socket, and the calls that it makes to this one."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from server.api.status import as_adapterd_error
from server.errors import AdapterdError, Unavailable
from server.fronts.channel import Channel

Handler = Callable[..., Awaitable[Any]]


CALL, CANCEL, RESULT, ERROR = range(4)  # what a message is; not an enum, which is slow to pickle


class Peer:
    """One end of the connection. Errors of ours cross it as they are, others as an Internal with the id of their log.

    handlers    what the other end may call, by name; arguments and results are plain data
    on_closed   called once when the other end is gone; every call in either direction has been ended by then
    """

    def __init__(self, handlers: Mapping[str, Handler], on_closed: Callable[[], None] = lambda: None) -> None:
        self._handlers = handlers
        self._on_closed = on_closed
        self._channel = Channel(self._receive, self._end)
        self._is_closed = False
        self._numbers = itertools.count()
        self._calling: dict[int, asyncio.Future[Any]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}

    async def open(self, sock: socket.socket) -> None:
        await self._channel.open(sock)

    def close(self) -> None:
        """Once what was sent is written."""
        self._channel.close()

    async def call(self, name: str, *arguments: Any) -> Any:
        """What the other end's handler gives or raises. Cancelling the caller cancels the handler.

        Raises Unavailable when the other end is gone.
        """
        if self._is_closed:
            raise _gone()
        number = next(self._numbers)
        reply = self._calling[number] = asyncio.get_running_loop().create_future()
        self._channel.send((CALL, number, name, arguments))
        try:
            return await reply
        except asyncio.CancelledError:
            self._channel.send((CANCEL, number))
            raise
        finally:
            del self._calling[number]

    @property
    def num_serving(self) -> int:
        """Calls of the other side that have no outcome yet."""
        return len(self._serving)

    def tell(self, name: str, *arguments: Any) -> None:
        """A call whose outcome is nobody's concern."""
        self._channel.send((CALL, next(self._numbers), name, arguments))

    def _receive(self, message: tuple[Any, ...]) -> None:
        kind, number = message[:2]
        if kind == CALL:
            task = self._serving[number] = asyncio.create_task(self._serve(number, message[2], message[3]))
            # Not in the task itself: cancelled before its first step, it would never get there.
            task.add_done_callback(lambda _: self._serving.pop(number, None))
        elif kind == CANCEL:
            if number in self._serving:
                self._serving[number].cancel()
        elif (reply := self._calling.get(number)) is not None and not reply.done():
            if kind == RESULT:
                reply.set_result(message[2])
            else:
                _fail(reply, message[2])

    async def _serve(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            result = await self._handlers[name](*arguments)
            self._channel.send((RESULT, number, result))
        except Exception as error:
            self._channel.send((ERROR, number, as_adapterd_error(error)))

    def _end(self) -> None:
        self._is_closed = True
        for reply in self._calling.values():
            if not reply.done():
                _fail(reply, _gone())
        for task in list(self._serving.values()):
            task.cancel()
        self._on_closed()


def _fail(reply: asyncio.Future[Any], error: AdapterdError) -> None:
    reply.set_exception(error)
    reply.exception()  # a caller who is cancelled at this very moment never looks; that is no leak


def _gone() -> Unavailable:
    return Unavailable("a part of the server has ended; send the request again")
