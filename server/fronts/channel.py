"""Messages over a socket between two processes of one server."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

HEADER = struct.Struct("<Q")  # bytes of the frame that follows


class Channel(asyncio.Protocol):
    """What is sent in one turn of the event loop travels as one frame: a frame costs more than a message.

    Frames are pickles, so both ends must be ours. What is on its way is bounded by the requests in flight.

    on_message   gets each message, in order
    on_closed    called once, when the other end is gone or `close` was called
    """

    def __init__(self, on_message: Callable[[Any], None], on_closed: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._unsent: list[Any] = []

    async def open(self, sock: socket.socket) -> None:
        """Take over one end of a connected pair."""
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    def send(self, message: Any) -> None:
        """After the other end is gone, to nobody."""
        self._unsent.append(message)
        if len(self._unsent) == 1:
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Once what was sent is written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        messages, self._unsent = self._unsent, []
        if messages and self._transport is not None and not self._transport.is_closing():
            frame = pickle.dumps(messages, protocol=5)
            self._transport.writelines((HEADER.pack(len(frame)), frame))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_closed()

    def data_received(self, data: bytes) -> None:
        self._received += data
        start = 0
        with memoryview(self._received) as view:
            while (end := _end_of_frame(view, start)) <= len(view):
                with view[start + HEADER.size : end] as frame:
                    messages = pickle.loads(frame)
                for message in messages:
                    self._on_message(message)
                start = end
        del self._received[:start]


def _end_of_frame(view: memoryview, start: int) -> int:
    """Where the frame that begins at `start` ends; beyond what is there if even its length is not."""
    body = start + HEADER.size
    if body > len(view):
        return body
    size: int = HEADER.unpack_from(view, start)[0]
    return body + size
