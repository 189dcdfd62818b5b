"""The client for asyncio: the same methods as the blocking one, which also trains. See `adapterd.client`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio

from adapterd import calls
from adapterd.calls import (
    MAX_PARTS,
    Outcome,
    Part,
    Request,
    Response,
    Rpc,
    adapter_metadata,
    channel_options,
    channel_to,
    cluster_options,
    credentials_of,
    gathered,
    left_until,
    outcome_of,
    parts_of,
    routed_adapter,
    token_metadata,
    until_of,
)
from adapterd.cluster import Follower, host_of, seeds_of, too_late
from adapterd.errors import Error, from_rpc_error
from adapterd.requests import (
    Item,
    Options,
    async_stream_messages,
    predict_request,
    publish_messages,
    traffic_request,
)
from adapterd.rings import Options as ChannelOptions
from adapterd.rings import Rings, Turns, Use
from adapterd.v1 import adapters_pb2 as admin
from adapterd.v1 import inference_pb2 as v1


class AsyncClient:
    """Make and use it on one event loop; `async with` it, or `close()` it."""

    def __init__(
        self,
        server: str = calls.DEFAULT_SERVER,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        max_retries: int = 3,
        max_message_bytes: int = calls.MAX_MESSAGE_BYTES,
        connections: int = 1,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._metadata = token_metadata(token)
        credentials, seeds = credentials_of(credentials), seeds_of(server)

        def make(target: str, options: ChannelOptions) -> grpc.aio.Channel:
            if credentials is None:
                return grpc.aio.insecure_channel(target, options)
            return grpc.aio.secure_channel(target, credentials, options)

        self._loop: asyncio.AbstractEventLoop | None = None  # that the first call runs on
        self._closing: set[asyncio.Task[None]] = set()
        self._follower: Follower | None = None
        self._asks_elsewhere = bool(seeds) and max_retries > 0
        self._channels: Rings[grpc.aio.Channel] | Turns[grpc.aio.Channel]
        if seeds:
            options = cluster_options(max_retries, connections, host_of(seeds[0]))
            self._channels = Rings(make, self._retire, options, connections)

            def blocking(target: str, options: ChannelOptions) -> grpc.Channel:
                return channel_to(target, credentials, options)

            self._follower = Follower(self._channels, blocking, options, seeds, self._metadata)
        else:
            options = channel_options(max_retries, connections)
            self._channels = Turns([make(server, options) for _ in range(connections)], self._close_soon)

    async def predict(
        self,
        adapter: str,
        text: str | Sequence[str] = (),
        *,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> v1.PredictResponse:
        return await self._call(calls.PREDICT, predict_request(adapter, text, **options), timeout)

    async def predict_batch(
        self, requests: Iterable[v1.PredictRequest], *, timeout: float | None = None
    ) -> list[Outcome]:
        """One outcome per request, in their order. `predict_request` makes one."""
        requests = list(requests)
        if self._follower is None or not requests:
            reply = await self._call(calls.PREDICT_BATCH, v1.PredictBatchRequest(requests=requests), timeout)
            return [outcome_of(outcome) for outcome in reply.outcomes]
        parts, room = parts_of(requests), asyncio.Semaphore(MAX_PARTS)
        until = until_of(timeout)

        async def ask(part: Part) -> list[Outcome]:
            try:
                async with room:
                    reply = await self._call(calls.PREDICT_BATCH, part.message, left_until(until))
            except Error as error:
                return [error] * len(part.positions)
            return [outcome_of(outcome) for outcome in reply.outcomes]

        return gathered(parts, await asyncio.gather(*map(ask, parts)))

    async def predict_stream(
        self, items: Iterable[Item] | AsyncIterable[Item], *, timeout: float | None = None
    ) -> AsyncIterator[tuple[str, Outcome]]:
        """(id, outcome) as they finish, for (id, request) as they come.

        An error of `items` is raised once the requests before it are answered. Leave the loop early only inside
        `contextlib.aclosing`, so that the call ends at once.
        """
        failures: list[Exception] = []
        messages = async_stream_messages(items, self._max_message_bytes, failures)
        until = until_of(timeout)
        async with self._use(timeout=timeout) as use:
            call = use.channel.stream_stream(**calls.PREDICT_STREAM.arguments())(
                messages, timeout=left_until(until), metadata=self._metadata
            )
            try:
                async for message in call:
                    yield message.id, outcome_of(message)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()
        if failures:
            raise failures[0]

    async def list(self, prefix: str = "", *, timeout: float | None = None) -> AsyncIterator[admin.Adapter]:
        """Every adapter whose name starts with `prefix`, by name."""
        request = admin.ListRequest(name_prefix=prefix)
        while True:
            page = await self._call(calls.LIST, request, timeout)
            for adapter in page.adapters:
                yield adapter
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def base(self, *, timeout: float | None = None) -> admin.Base:
        return (await self._call(calls.LIST, admin.ListRequest(page_size=1), timeout)).base

    async def get(self, name: str, *, timeout: float | None = None) -> admin.Adapter:
        return (await self._call(calls.GET, admin.GetRequest(name=name), timeout)).adapter

    async def load(self, name: str, *, timeout: float | None = None) -> admin.LoadResponse:
        """Read the adapter from its origin again and move the name to what was found."""
        return await self._call(calls.LOAD, admin.LoadRequest(name=name), timeout)

    async def publish(
        self, folder: Path | str, name: str = "", *, percent: int | None = None, timeout: float | None = None
    ) -> admin.PublishResponse:
        """See `Client.publish`. Files are read on the event loop, a megabyte at a time."""
        messages = publish_messages(name or Path(folder).name, Path(folder), percent)
        until = until_of(timeout)
        async with self._use(timeout=timeout) as use:
            try:
                call = use.channel.stream_unary(**calls.PUBLISH.arguments())
                reply: admin.PublishResponse = await call(messages, timeout=left_until(until), metadata=self._metadata)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        return reply

    async def unload(self, name: str, *, timeout: float | None = None) -> admin.UnloadResponse:
        return await self._call(calls.UNLOAD, admin.UnloadRequest(name=name), timeout)

    async def pin(self, name: str, is_pinned: bool = True, *, timeout: float | None = None) -> admin.Adapter:
        request = admin.PinRequest(name=name, is_pinned=is_pinned)
        return (await self._call(calls.PIN, request, timeout)).adapter

    async def prefetch(self, names: Iterable[str], *, timeout: float | None = None) -> int:
        """See `Client.prefetch`."""
        return (await self._call(calls.PREFETCH, admin.PrefetchRequest(names=names), timeout)).num_begun

    async def set_traffic(self, name: str, shares: Mapping[str, int], *, timeout: float | None = None) -> admin.Adapter:
        """See `Client.set_traffic`."""
        return (await self._call(calls.SET_TRAFFIC, traffic_request(name, shares), timeout)).adapter

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """See `Client.wait_ready`."""
        until = time.monotonic() + timeout
        if self._follower is not None:
            await asyncio.to_thread(self._follower.wait, timeout)
        timeout = left_until(until)
        async with self._use(timeout=timeout) as use:
            check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = use.channel.unary_unary(calls.HEALTH_CHECK)
            try:
                answer = await check(calls.HEALTH_REQUEST, timeout=timeout, wait_for_ready=True)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        calls.require_serving(answer)

    async def close(self) -> None:
        if self._follower is not None:
            await asyncio.to_thread(self._follower.close)
        self._channels.close()
        await asyncio.sleep(0)  # what the follower has retired is being closed now
        await asyncio.gather(*self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, rpc: Rpc[Request, Response], request: Request, timeout: float | None) -> Response:
        calls.require_size(request, self._max_message_bytes)
        adapter, until = routed_adapter(request), until_of(timeout)
        async with self._use(adapter, timeout) as use:
            try:
                return await self._attempt(use, rpc, request, left_until(until))
            except Error as error:
                if not (self._asks_elsewhere and adapter and error.code in calls.LOST):
                    raise
            async with self._use(adapter, left_until(until), use) as other:
                return await self._attempt(other, rpc, request, left_until(until))

    async def _attempt(
        self, use: Use[grpc.aio.Channel], rpc: Rpc[Request, Response], request: Request, timeout: float | None
    ) -> Response:
        call: grpc.aio.UnaryUnaryMultiCallable[Request, Response] = use.channel.unary_unary(**rpc.arguments())
        try:
            reply = await call(request, timeout=timeout, metadata=(*self._metadata, *adapter_metadata(use.adapter)))
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            use.failed(error)
            raise error from rpc_error
        use.answered(reply)
        return reply

    @asynccontextmanager
    async def _use(
        self, adapter: str = "", timeout: float | None = None, after: Use[grpc.aio.Channel] | None = None
    ) -> AsyncIterator[Use[grpc.aio.Channel]]:
        """See `Client._use`."""
        if self._follower is not None:
            self._loop = asyncio.get_running_loop()
            if not self._follower.is_ready:
                try:
                    async with asyncio.timeout(timeout):  # there are fewer threads than there may be callers
                        await asyncio.to_thread(self._follower.ready, timeout)
                except TimeoutError:
                    raise too_late(timeout) from None
        with self._channels.use(adapter, after) as use:
            yield use

    def _retire(self, channel: grpc.aio.Channel) -> None:
        """From any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._close_soon, channel)

    def _close_soon(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
