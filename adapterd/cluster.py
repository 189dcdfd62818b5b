"""A client's channels: to one server, or to all replicas of a cluster, whose list it follows.

For replicas that some requests pass by there is a channel to all others; gRPC shares the connections among them.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from adapterd import calls
from adapterd.calls import Metadata
from adapterd.errors import Error, from_rpc_error
from adapterd.routing import Routing, merged, ring_options, target_of
from adapterd.v1 import inference_pb2 as v1
from adapterd.v1 import replicas_pb2

SCHEME = "cluster:"
FOLLOW_S = 1.0  # between looks at the list of replicas
LOOK_TIMEOUT_S = 2.0
MAX_RINGS = 64  # channels to all replicas, or to all but some

C = TypeVar("C")  # a channel, of grpc or grpc.aio
Options = list[tuple[str, Any]]
Address = tuple[str, int]  # resolved


def seeds_of(server: str) -> tuple[str, ...]:
    """host:port of the replicas that "cluster:HOST:PORT,HOST:PORT" names; none for a single server's address.

    Raises ValueError for one without a port.
    """
    if not server.startswith(SCHEME):
        return ()
    seeds = tuple(seed.strip() for seed in server.removeprefix(SCHEME).split(","))
    for seed in seeds:
        _split(seed)
    return seeds


def host_of(seed: str) -> str:
    """What a certificate of any replica has to name: they are reached by addresses that certificates do not have."""
    return _split(seed)[0]


def resolved(addresses: Sequence[str]) -> dict[str, Address]:
    """IP address and port by host:port, without those that no name service knows. Blocks. Raises Error for none."""
    found: dict[str, Address] = {}
    for address in addresses:
        host, port = _split(address)
        try:
            sock = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
        except OSError:
            continue
        found[address] = str(sock[0]), port
    if not found:
        raise Error(grpc.StatusCode.UNAVAILABLE, f"no address is known of {', '.join(addresses)[:256]}")
    return found


def _split(address: str) -> Address:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{address[:128]!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


@dataclass(slots=True, eq=False)
class _Ring(Generic[C]):
    """A channel, and the calls that use it."""

    channel: C
    num_calls: int = 0
    is_retired: bool = False


class Use(Generic[C]):
    """A channel for one call, which is told what came of it."""

    def __init__(self, channel: C, adapter: str, rings: Rings[C] | None = None, avoided: tuple[str, ...] = ()) -> None:
        self.channel = channel
        self._adapter, self._rings, self._avoided = adapter, rings, avoided

    def answered(self, response: Message) -> None:
        if self._rings is not None and isinstance(response, v1.PredictResponse):
            self._rings.learn(lambda routing: routing.answered(self._adapter, response, self._avoided))

    def failed(self, error: Error) -> None:
        if self._rings is not None and error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._rings.learn(lambda routing: routing.refused(self._adapter, self._avoided))


class Turns:
    """Channels to one server, in turn."""

    def __init__(self, channels: Sequence[grpc.Channel]) -> None:
        self._channels, self._turns = channels, cycle(channels)

    @contextmanager
    def use(self, adapter: str = "") -> Iterator[Use[grpc.Channel]]:
        yield Use(next(self._turns), adapter)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class AsyncTurns:
    """As `Turns`, for asyncio."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels, self._turns = channels, cycle(channels)

    @asynccontextmanager
    async def use(self, adapter: str = "") -> AsyncIterator[Use[grpc.aio.Channel]]:
        yield Use(next(self._turns), adapter)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


class Rings(Generic[C]):
    """Channels to the replicas of a cluster, each over a ring. Threads may share it.

    make     a channel to a target with options
    retire   closes one that no call uses any more
    """

    def __init__(
        self, make: Callable[[str, Options], C], retire: Callable[[C], None], options: Options, connections: int
    ) -> None:
        self._make, self._retire = make, retire
        self._config = next((value for name, value in options if name == "grpc.service_config"), "{}")
        self._options = [(name, value) for name, value in options if name != "grpc.service_config"]
        self._turns = cycle(range(connections))
        self._lock = threading.Lock()
        self._routing = Routing()
        self._replicas: Mapping[str, Address] = {}
        self._rings: OrderedDict[tuple[int, tuple[str, ...]], _Ring[C]] = OrderedDict()

    @property
    def is_known(self) -> bool:
        """Whether there is a list."""
        return bool(self._replicas)

    def follow(self, replicas: Mapping[str, Address]) -> None:
        """Send new calls to these; those under way stay where they are."""
        with self._lock:
            if dict(replicas) == self._replicas:
                return
            self._replicas = dict(replicas)
            unused = self._retired()
        self._close(unused)

    def close(self) -> None:
        with self._lock:
            rings, self._rings = list(self._rings.values()), OrderedDict()
        self._close(rings)

    @contextmanager
    def use(self, adapter: str = "") -> Iterator[Use[C]]:
        """adapter   whose replica is to answer; without one, any"""
        with self._lock:
            avoided = self._routing.avoided(adapter)
            if avoided and not (len(avoided) < len(self._replicas) and self._replicas.keys() >= set(avoided)):
                avoided = ()
            ring = self._ring(next(self._turns), avoided)
            ring.num_calls += 1
            unused = self._let_go()
        self._close(unused)
        try:
            yield Use(ring.channel, adapter, self, avoided)
        finally:
            with self._lock:
                ring.num_calls -= 1
                is_over = ring.is_retired and not ring.num_calls
            if is_over:
                self._retire(ring.channel)

    @contextmanager
    def over(self, replicas: Mapping[str, Address]) -> Iterator[C]:
        """A channel to these for one call, wherever others go."""
        channel = self._make(*self._over(replicas.values(), 0))
        try:
            yield channel
        finally:
            self._retire(channel)

    def learn(self, note: Callable[[Routing], None]) -> None:
        with self._lock:
            note(self._routing)

    def _ring(self, connection: int, avoided: tuple[str, ...]) -> _Ring[C]:
        found = self._rings.get((connection, avoided))
        if found is None:
            replicas = [address for name, address in self._replicas.items() if name not in avoided]
            found = self._rings[connection, avoided] = _Ring(self._make(*self._over(replicas, connection)))
        self._rings.move_to_end((connection, avoided))
        return found

    def _let_go(self) -> list[_Ring[C]]:
        """Take away what was not used for longest where there are many; give those that no call uses."""
        gone = [self._rings.popitem(last=False)[1] for _ in range(len(self._rings) - MAX_RINGS)]
        for ring in gone:
            ring.is_retired = True
        return [ring for ring in gone if not ring.num_calls]

    def _over(self, replicas: Collection[Address], connection: int) -> tuple[str, Options]:
        """Target and options of a channel."""
        balancing, options = ring_options(len(replicas))
        config = ("grpc.service_config", merged(self._config, balancing))
        # channels that differ in an option share no connection
        return target_of(sorted(replicas)), [*self._options, *options, config, ("adapterd.connection", connection)]

    def _retired(self) -> list[_Ring[C]]:
        """Take all rings away; give those that no call uses."""
        rings, self._rings = list(self._rings.values()), OrderedDict()
        for ring in rings:
            ring.is_retired = True
        return [ring for ring in rings if not ring.num_calls]

    def _close(self, rings: Sequence[_Ring[C]]) -> None:
        for ring in rings:
            self._retire(ring.channel)


class Followed:
    """The rings of a blocking client, which a thread keeps up to date from the first call on."""

    def __init__(
        self,
        make: Callable[[str, Options], grpc.Channel],
        options: Options,
        connections: int,
        seeds: Sequence[str],
        metadata: Metadata,
    ) -> None:
        self.rings = Rings(make, lambda channel: channel.close(), options, connections)
        self._seeds, self._metadata = seeds, metadata
        self._starting = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="adapterd replicas", daemon=True)

    @contextmanager
    def use(self, adapter: str = "") -> Iterator[Use[grpc.Channel]]:
        """Raises Error where no replica tells of the others."""
        if not self.rings.is_known:
            with self._starting:
                if not self.rings.is_known:
                    self._look()
                    self._thread.start()
        with self.rings.use(adapter) as use:
            yield use

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self.rings.close()

    def _keep_looking(self) -> None:
        while not self._over.wait(FOLLOW_S):
            with suppress(Error):  # the list stays as it was
                self._look()

    def _look(self) -> None:
        if self.rings.is_known:
            with suppress(grpc.RpcError), self.rings.use() as use:
                return self._take(self._list(use.channel))
        seeds = resolved(self._seeds)
        try:
            with self.rings.over(seeds) as channel:
                listed = self._list(channel)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        self.rings.follow(resolved(listed.addresses) if listed.addresses else seeds)

    def _list(self, channel: grpc.Channel) -> replicas_pb2.ListReplicasResponse:
        listing: grpc.UnaryUnaryMultiCallable[Any, replicas_pb2.ListReplicasResponse] = channel.unary_unary(
            **calls.REPLICAS_LIST.arguments()
        )
        return listing(replicas_pb2.ListReplicasRequest(), timeout=LOOK_TIMEOUT_S, metadata=self._metadata)

    def _take(self, listed: replicas_pb2.ListReplicasResponse) -> None:
        if listed.addresses:
            self.rings.follow(resolved(listed.addresses))


class AsyncFollowed:
    """The rings of a client for asyncio, which a task keeps up to date from the first call on."""

    def __init__(
        self,
        make: Callable[[str, Options], grpc.aio.Channel],
        options: Options,
        connections: int,
        seeds: Sequence[str],
        metadata: Metadata,
    ) -> None:
        self.rings = Rings(make, self._retire, options, connections)
        self._retiring: set[asyncio.Task[None]] = set()
        self._seeds, self._metadata = seeds, metadata
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def use(self, adapter: str = "") -> AsyncIterator[Use[grpc.aio.Channel]]:
        """Raises Error where no replica tells of the others."""
        if not self.rings.is_known:
            async with self._starting:
                if not self.rings.is_known:
                    await self._look()
                    self._task = asyncio.create_task(self._keep_looking())
        with self.rings.use(adapter) as use:
            yield use

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.rings.close()
        await asyncio.gather(*self._retiring)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            with suppress(Error):
                await self._look()

    async def _look(self) -> None:
        if self.rings.is_known:
            with suppress(grpc.RpcError), self.rings.use() as use:
                return await self._take(await self._list(use.channel))
        seeds = await asyncio.to_thread(resolved, self._seeds)
        try:
            with self.rings.over(seeds) as channel:
                listed = await self._list(channel)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        self.rings.follow(await asyncio.to_thread(resolved, listed.addresses) if listed.addresses else seeds)

    async def _list(self, channel: grpc.aio.Channel) -> replicas_pb2.ListReplicasResponse:
        listing: grpc.aio.UnaryUnaryMultiCallable[Any, replicas_pb2.ListReplicasResponse] = channel.unary_unary(
            **calls.REPLICAS_LIST.arguments()
        )
        return await listing(replicas_pb2.ListReplicasRequest(), timeout=LOOK_TIMEOUT_S, metadata=self._metadata)

    async def _take(self, listed: replicas_pb2.ListReplicasResponse) -> None:
        if listed.addresses:
            self.rings.follow(await asyncio.to_thread(resolved, listed.addresses))
