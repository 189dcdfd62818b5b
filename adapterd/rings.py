"""The channels of one client: to one server, or to all replicas of a cluster, each over gRPC's ring of them.

For replicas that some requests pass by there is a channel to all others. A channel connects to a replica when it has a
call for it, and shares no connection with other channels.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from adapterd.calls import CLOSED
from adapterd.errors import Error
from adapterd.routing import Routing, merged, ring_options, target_of
from adapterd.v1 import inference_pb2 as v1

MAX_RINGS = 64  # channels for each connection of a client
KEEP_S = 10.0  # a channel that was used so lately is not given up for another one

C = TypeVar("C")  # a channel, of grpc or grpc.aio
Options = list[tuple[str, Any]]
Address = tuple[str, int]  # IP address and port
Make = Callable[[str, Options], C]


class Use(Generic[C]):
    """A channel for one call, which is told what came of it.

    avoided   replicas that the channel passes by
    asked     the replica that answers, as far as it is known when the call goes
    """

    def __init__(
        self,
        channel: C,
        adapter: str,
        rings: Rings[C] | None = None,
        avoided: tuple[str, ...] = (),
        asked: tuple[str, ...] = (),
    ) -> None:
        self.channel, self.adapter, self.asked = channel, adapter, asked
        self._rings, self._avoided = rings, avoided

    def answered(self, reply: Message) -> None:
        if self._rings is not None and (response := _response_of(reply)) is not None:
            self._rings.learn(lambda routing: routing.answered(self.adapter, response, self._avoided))

    def failed(self, error: Error) -> None:
        if self._rings is not None and error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._rings.learn(lambda routing: routing.refused(self.adapter, self._avoided))


def _response_of(reply: Message) -> v1.PredictResponse | None:
    """Of one adapter's request, or of the first that was answered in a batch of one adapter."""
    if isinstance(reply, v1.PredictBatchResponse):
        return next((outcome.response for outcome in reply.outcomes if outcome.HasField("response")), None)
    return reply if isinstance(reply, v1.PredictResponse) else None


class Turns(Generic[C]):
    """Channels to one server, in turn."""

    def __init__(self, channels: Sequence[C], retire: Callable[[C], None]) -> None:
        self._channels, self._turns, self._retire = channels, cycle(channels), retire

    @contextmanager
    def use(self, adapter: str = "", after: Use[C] | None = None) -> Iterator[Use[C]]:
        yield Use(next(self._turns), adapter)

    def close(self) -> None:
        for channel in self._channels:
            self._retire(channel)


@dataclass(slots=True, eq=False)
class _Ring(Generic[C]):
    """A channel, and the calls that use it."""

    channel: C
    num_calls: int = 0
    used_at: float = field(default_factory=time.monotonic)


class Rings(Generic[C]):
    """Channels to the replicas of a cluster. Threads may share it.

    make     a channel to a target with options
    retire   closes one that no call uses any more
    """

    def __init__(self, make: Make[C], retire: Callable[[C], None], options: Options, connections: int) -> None:
        self._make, self._retire = make, retire
        self._options, self._connections = options, connections
        self._turns = cycle(range(connections))
        self._lock = threading.Lock()
        self._routing = Routing()
        self._replicas: Mapping[str, Address] = {}
        self._rings: OrderedDict[tuple[int, tuple[str, ...]], _Ring[C]] = OrderedDict()
        self._ending = set[_Ring[C]]()  # given up, and still in use
        self._is_closed = False

    @property
    def is_known(self) -> bool:
        """Whether there is a list."""
        return bool(self._replicas)

    def follow(self, replicas: Mapping[str, Address]) -> bool:
        """Send new calls to these; those under way stay where they are. Gives whether they are others than before."""
        with self._lock:
            if dict(replicas) == self._replicas:
                return False
            self._replicas = dict(replicas)
            unused = self._retired(list(self._rings))
        self._close(unused)
        return True

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            rings = [*self._rings.values(), *self._ending]
            self._rings.clear()
            self._ending.clear()
        self._close(rings)

    @contextmanager
    def use(self, adapter: str = "", after: Use[C] | None = None) -> Iterator[Use[C]]:
        """
        adapter   whose replica is to answer; without one, any
        after     a use that failed: another replica is to answer, where that one is known

        Raises Error once the client is closed.
        """
        with self._lock:
            if self._is_closed:
                raise Error(grpc.StatusCode.CANCELLED, CLOSED)
            connection, avoided = next(self._turns), self._avoided(adapter, after)
            unused = self._room_for(connection, avoided, after is not None) if avoided else []
            if unused is None:
                unused, avoided = [], ()
            ring, asked = self._ring(connection, avoided), self._routing.asked(adapter, avoided)
            ring.num_calls += 1
        self._close(unused)
        try:
            yield Use(ring.channel, adapter, self, avoided, asked)
        finally:
            with self._lock:
                ring.num_calls -= 1
                is_over = ring in self._ending and not ring.num_calls
                if is_over:
                    self._ending.remove(ring)
            if is_over:
                self._retire(ring.channel)

    def learn(self, note: Callable[[Routing], None]) -> None:
        with self._lock:
            note(self._routing)

    def _avoided(self, adapter: str, after: Use[C] | None) -> tuple[str, ...]:
        avoided = self._routing.avoided(adapter) if after is None else after.asked
        is_possible = len(avoided) < len(self._replicas) and self._replicas.keys() >= set(avoided)
        return avoided if is_possible else ()

    def _room_for(self, connection: int, avoided: tuple[str, ...], is_needed: bool) -> list[_Ring[C]] | None:
        """Channels that were given up for another one; None where there are many and all were used lately."""
        if (connection, avoided) in self._rings or len(self._rings) < MAX_RINGS * self._connections:
            return []
        key, ring = next(iter(self._rings.items()))
        return self._retired([key]) if is_needed or time.monotonic() - ring.used_at > KEEP_S else None

    def _ring(self, connection: int, avoided: tuple[str, ...]) -> _Ring[C]:
        found = self._rings.get((connection, avoided))
        if found is None:
            replicas = [address for name, address in self._replicas.items() if name not in avoided]
            options = [*self._options, ("adapterd.connection", connection)]
            found = self._rings[connection, avoided] = _Ring(self._make(*over(replicas, options)))
        found.used_at = time.monotonic()
        self._rings.move_to_end((connection, avoided))
        return found

    def _retired(self, keys: Sequence[tuple[int, tuple[str, ...]]]) -> list[_Ring[C]]:
        """Take rings away; give those that no call uses."""
        rings = [self._rings.pop(key) for key in keys]
        self._ending.update(ring for ring in rings if ring.num_calls)
        return [ring for ring in rings if not ring.num_calls]

    def _close(self, rings: Sequence[_Ring[C]]) -> None:
        for ring in rings:
            self._retire(ring.channel)


def over(replicas: Collection[Address], options: Options) -> tuple[str, Options]:
    """Target and options of a channel over a ring of these replicas."""
    config = next((value for name, value in options if name == "grpc.service_config"), "{}")
    others = [(name, value) for name, value in options if name != "grpc.service_config"]
    balancing, more = ring_options(len(replicas))
    return target_of(sorted(replicas)), [*others, *more, ("grpc.service_config", merged(config, balancing))]
