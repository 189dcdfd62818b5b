"""How requests go out: over streams that are never full, or as one call each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from adapterd import calls
from adapterd.v1 import inference_pb2 as v1

# A server may stop reading a stream with this many unanswered requests. The next one then takes a new stream: an open
# loop must not feel back pressure.
MAX_PER_STREAM = 64

Answer = v1.PredictResponse | int  # or the grpc status code of what failed
OnSent = Callable[[int], None]
OnAnswer = Callable[[int, Answer], None]


class Sender(Protocol):
    """Calls `on_sent(index)` and, unless it is closed before, `on_answer(index, answer)` once for each request."""

    async def open(self) -> None: ...
    def send(self, index: int, request: v1.PredictRequest) -> None: ...
    async def close(self) -> None: ...


class StreamSender:
    """Requests as messages of PredictStream, each with a time limit of its own."""

    def __init__(
        self,
        server: str,
        num_channels: int,
        timeout_s: float,
        on_sent: OnSent,
        on_answer: OnAnswer,
        token: str = "",
    ) -> None:
        self._channels = _channels(server, num_channels)
        self._metadata = calls.token_metadata(token)
        self._timeout = _duration(timeout_s)
        self._on_sent, self._on_answer = on_sent, on_answer
        self._streams: list[_Stream] = []

    async def open(self) -> None:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        for _ in self._channels:
            self._add_stream()

    def send(self, index: int, request: v1.PredictRequest) -> None:
        stream = min(self._alive(), key=lambda stream: len(stream.unanswered), default=None)
        if stream is None or len(stream.unanswered) >= MAX_PER_STREAM:
            stream = self._add_stream()
        stream.send(index, v1.PredictStreamRequest(id=str(index), request=request, timeout=self._timeout))

    async def close(self) -> None:
        for stream in self._streams:
            stream.close()
        await asyncio.gather(*(stream.reader for stream in self._streams))
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def _alive(self) -> list[_Stream]:
        return [stream for stream in self._streams if not stream.reader.done()]

    def _add_stream(self) -> _Stream:
        channel = self._channels[len(self._streams) % len(self._channels)]
        self._streams.append(_Stream(channel, self._on_sent, self._on_answer, self._metadata))
        return self._streams[-1]


class _Stream:
    """One call. `reader` ends with it; what was unanswered then gets the call's code."""

    def __init__(
        self, channel: grpc.aio.Channel, on_sent: OnSent, on_answer: OnAnswer, metadata: calls.Metadata
    ) -> None:
        self._on_sent, self._on_answer = on_sent, on_answer
        self._outbox: asyncio.Queue[tuple[int, v1.PredictStreamRequest]] = asyncio.Queue()
        self.unanswered: set[int] = set()
        self._call: Any = channel.stream_stream(**calls.PREDICT_STREAM.arguments())(self._messages(), metadata=metadata)
        self.reader = asyncio.create_task(self._read())

    def send(self, index: int, message: v1.PredictStreamRequest) -> None:
        self.unanswered.add(index)
        self._outbox.put_nowait((index, message))

    def close(self) -> None:
        self.unanswered.clear()
        self._call.cancel()

    async def _messages(self) -> AsyncIterator[v1.PredictStreamRequest]:
        while True:
            index, message = await self._outbox.get()
            self._on_sent(index)
            yield message

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                self._answer(int(reply.id), reply.error.code if reply.HasField("error") else reply.response)
        except asyncio.CancelledError:
            if self.unanswered:
                raise
        except grpc.RpcError as error:
            for index in tuple(self.unanswered):
                self._answer(index, _code_of(error))

    def _answer(self, index: int, answer: Answer) -> None:
        if index in self.unanswered:
            self.unanswered.remove(index)
            self._on_answer(index, answer)


class UnarySender:
    """Each request as a Predict call of its own."""

    def __init__(
        self,
        server: str,
        num_channels: int,
        timeout_s: float,
        on_sent: OnSent,
        on_answer: OnAnswer,
        token: str = "",
    ) -> None:
        self._channels = _channels(server, num_channels)
        self._metadata = calls.token_metadata(token)
        self._methods: list[Any] = [channel.unary_unary(**calls.PREDICT.arguments()) for channel in self._channels]
        self._timeout_s = timeout_s
        self._on_sent, self._on_answer = on_sent, on_answer
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    def send(self, index: int, request: v1.PredictRequest) -> None:
        task = asyncio.create_task(self._call(index, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _call(self, index: int, request: v1.PredictRequest) -> None:
        method = self._methods[index % len(self._methods)]
        self._on_sent(index)
        try:
            answer: Answer = await method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            answer = _code_of(error)
        self._on_answer(index, answer)


def _channels(server: str, num: int) -> list[grpc.aio.Channel]:
    """Connections of their own: a pool would make them one. Nothing is retried, a refusal is an outcome."""
    options = [*calls.channel_options(max_retries=0), ("grpc.use_local_subchannel_pool", 1)]
    return [grpc.aio.insecure_channel(server, options) for _ in range(num)]


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def _code_of(error: grpc.RpcError) -> int:
    code: int = error.code().value[0]
    return code
