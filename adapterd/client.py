"""The blocking client.

Messages are those of `adapterd.v1`. A failed call raises `adapterd.Error`; a failed item of a batch or stream
is given back as one. Refusals for lack of room are retried, see `max_retries`. A request beyond
`max_message_bytes`, which is the server's setting of this name, is not sent.

A connection ends in one of the server's front processes: `connections` reach several, and take calls in turn.

"cluster:HOST:PORT" as the server, or several with commas, means all replicas that these know of. A request goes to the
replica where its adapter is warm; where that one has too much to do, some go to the next. A batch is divided by
adapter, and a part that fails is the failure of its requests; a stream stays with one replica. What is published,
moved or unloaded at one of them reaches the others, where they share a folder.

Without a `token`, that of the variable ADAPTERD_TOKEN is sent. Without `credentials`, the PEM files that ADAPTERD_CA,
ADAPTERD_CERTIFICATE and ADAPTERD_KEY name are used; where those are not set either, the channel is in the clear.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
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
from adapterd.cluster import Follower, host_of, seeds_of
from adapterd.errors import Error, from_rpc_error
from adapterd.requests import (
    Item,
    Options,
    predict_request,
    publish_messages,
    stream_messages,
    traffic_request,
    train_messages,
)
from adapterd.rings import Options as ChannelOptions
from adapterd.rings import Rings, Turns, Use
from adapterd.v1 import adapters_pb2 as admin
from adapterd.v1 import inference_pb2 as v1
from adapterd.v1 import training_pb2 as training


class Client:
    """A blocking client; threads may share it. Use as a context manager, or `close()` it."""

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

        def make(target: str, options: ChannelOptions) -> grpc.Channel:
            return channel_to(target, credentials, options)

        self._follower: Follower | None = None
        self._asks_elsewhere = bool(seeds) and max_retries > 0
        self._channels: Rings[grpc.Channel] | Turns[grpc.Channel]
        if seeds:
            options = cluster_options(max_retries, connections, host_of(seeds[0]))
            self._channels = Rings(make, _close, options, connections)
            self._follower = Follower(self._channels, make, options, seeds, self._metadata)
        else:
            options = channel_options(max_retries, connections)
            self._channels = Turns([make(server, options) for _ in range(connections)], _close)

    def predict(
        self,
        adapter: str,
        text: str | Sequence[str] = (),
        *,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> v1.PredictResponse:
        return self._call(calls.PREDICT, predict_request(adapter, text, **options), timeout)

    def predict_batch(self, requests: Iterable[v1.PredictRequest], *, timeout: float | None = None) -> list[Outcome]:
        """One outcome per request, in their order. `predict_request` makes one."""
        requests = list(requests)
        if self._follower is None or not requests:
            reply = self._call(calls.PREDICT_BATCH, v1.PredictBatchRequest(requests=requests), timeout)
            return [outcome_of(outcome) for outcome in reply.outcomes]
        parts = parts_of(requests)
        until = until_of(timeout)

        def ask(part: Part) -> list[Outcome]:
            try:
                reply = self._call(calls.PREDICT_BATCH, part.message, left_until(until))
            except Error as error:
                return [error] * len(part.positions)
            return [outcome_of(outcome) for outcome in reply.outcomes]

        with ThreadPoolExecutor(min(len(parts), MAX_PARTS)) as pool:
            return gathered(parts, list(pool.map(ask, parts)))

    def predict_stream(self, items: Iterable[Item], *, timeout: float | None = None) -> Iterator[tuple[str, Outcome]]:
        """(id, outcome) as they finish, for (id, request) as they come. Leaving the loop ends the call.

        An error of `items` is raised once the requests before it are answered.
        """
        failures: list[Exception] = []
        messages = stream_messages(items, self._max_message_bytes, failures)
        until = until_of(timeout)
        with self._use(timeout=timeout) as use:
            call = use.channel.stream_stream(**calls.PREDICT_STREAM.arguments())(
                messages, timeout=left_until(until), metadata=self._metadata
            )
            try:
                for message in call:
                    yield message.id, outcome_of(message)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()
        if failures:
            raise failures[0]

    def list(self, prefix: str = "", *, timeout: float | None = None) -> Iterator[admin.Adapter]:
        """Every adapter whose name starts with `prefix`, by name."""
        request = admin.ListRequest(name_prefix=prefix)
        while True:
            page = self._call(calls.LIST, request, timeout)
            yield from page.adapters
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def base(self, *, timeout: float | None = None) -> admin.Base:
        return self._call(calls.LIST, admin.ListRequest(page_size=1), timeout).base

    def get(self, name: str, *, timeout: float | None = None) -> admin.Adapter:
        return self._call(calls.GET, admin.GetRequest(name=name), timeout).adapter

    def load(self, name: str, *, timeout: float | None = None) -> admin.LoadResponse:
        """Read the adapter from its origin again and move the name to what was found."""
        return self._call(calls.LOAD, admin.LoadRequest(name=name), timeout)

    def train(
        self, plan: training.TrainPlan, files: Mapping[str, Path], *, timeout: float | None = None
    ) -> Iterator[training.TrainResponse]:
        """Train an adapter on the server's base: its place in the queue, steps, and at the end the adapter's files.

        files   of labelled texts, by split: "train", and if there are any "validation" and "test"
        Leaving the loop ends the training.
        """
        until = until_of(timeout)
        with self._use(timeout=timeout) as use:
            call = use.channel.stream_stream(**calls.TRAIN.arguments())(
                train_messages(plan, files), timeout=left_until(until), metadata=self._metadata
            )
            try:
                yield from call
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()

    def publish(
        self, folder: Path | str, name: str = "", *, percent: int | None = None, timeout: float | None = None
    ) -> admin.PublishResponse:
        """Send an adapter's files; they are verified and then served under `name`, by default the folder's.

        percent   of the requests for the name that the new version gets, beside the one before; by default all
        Raises Error where the server refuses them; then the name stays where it was.
        """
        messages = publish_messages(name or Path(folder).name, Path(folder), percent)
        until = until_of(timeout)
        with self._use(timeout=timeout) as use:
            try:
                reply: admin.PublishResponse = use.channel.stream_unary(**calls.PUBLISH.arguments())(
                    messages, timeout=left_until(until), metadata=self._metadata
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        return reply

    def unload(self, name: str, *, timeout: float | None = None) -> admin.UnloadResponse:
        return self._call(calls.UNLOAD, admin.UnloadRequest(name=name), timeout)

    def pin(self, name: str, is_pinned: bool = True, *, timeout: float | None = None) -> admin.Adapter:
        return self._call(calls.PIN, admin.PinRequest(name=name, is_pinned=is_pinned), timeout).adapter

    def prefetch(self, names: Iterable[str], *, timeout: float | None = None) -> int:
        """Say that adapters will be asked for soon; give how many loads that began."""
        return self._call(calls.PREFETCH, admin.PrefetchRequest(names=names), timeout).num_begun

    def set_traffic(self, name: str, shares: Mapping[str, int], *, timeout: float | None = None) -> admin.Adapter:
        """Divide the requests for a name among its versions, percentages by digest; the rest stays where it is.

        100 percent to one version promotes it, or goes back to it.
        """
        return self._call(calls.SET_TRAFFIC, traffic_request(name, shares), timeout).adapter

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return once the server, or a replica, says it serves. Raises Error if none does within `timeout` seconds."""
        until = time.monotonic() + timeout
        if self._follower is not None:
            self._follower.wait(timeout)
        timeout = left_until(until)
        with self._use(timeout=timeout) as use:
            check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = use.channel.unary_unary(calls.HEALTH_CHECK)
            try:
                answer = check(calls.HEALTH_REQUEST, timeout=timeout, wait_for_ready=True)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        calls.require_serving(answer)

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self._channels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, rpc: Rpc[Request, Response], request: Request, timeout: float | None) -> Response:
        calls.require_size(request, self._max_message_bytes)
        adapter, until = routed_adapter(request), until_of(timeout)
        with self._use(adapter, timeout) as use:
            try:
                return self._attempt(use, rpc, request, left_until(until))
            except Error as error:
                if not (self._asks_elsewhere and adapter and error.code in calls.LOST):
                    raise
            with self._use(adapter, left_until(until), use) as other:
                return self._attempt(other, rpc, request, left_until(until))

    def _attempt(
        self, use: Use[grpc.Channel], rpc: Rpc[Request, Response], request: Request, timeout: float | None
    ) -> Response:
        call: grpc.UnaryUnaryMultiCallable[Request, Response] = use.channel.unary_unary(**rpc.arguments())
        try:
            reply = call(request, timeout=timeout, metadata=(*self._metadata, *adapter_metadata(use.adapter)))
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            use.failed(error)
            raise error from rpc_error
        use.answered(reply)
        return reply

    def _use(
        self, adapter: str = "", timeout: float | None = None, after: Use[grpc.Channel] | None = None
    ) -> AbstractContextManager[Use[grpc.Channel]]:
        """A channel for one call. Raises Error where no replica tells of the others."""
        if self._follower is not None:
            self._follower.ready(timeout)
        return self._channels.use(adapter, after)


def _close(channel: grpc.Channel) -> None:
    channel.close()
