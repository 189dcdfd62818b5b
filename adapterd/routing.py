"""Which replica a request goes to: the one that its adapter is warm on, or the next one where that has too much to do.

gRPC's own ring hash does the first (gRFC A42, A76), by the header x-adapter. It knows no load, so the second is here:
consistent hashing with bounded loads (Mirrokni et al., 2018), with the wait that replies tell of in place of counts,
for one client does not know what others send. The next replica is the next on the ring: the same that answers if the
first one dies. It is learned twice:

- for each adapter, over how many replicas its requests go: as long as the last one that helps waits less than the
  first, one more may be asked. That is for an adapter that many ask for.
- for each replica, how many of its adapters move to their next one, whole: that is for a replica to which the ring gave
  more than its share. A hash of the name says in which order, so clients that learned alike move the same.
"""

from __future__ import annotations

import ipaddress
import json
import math
import random
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from adapterd.v1 import inference_pb2 as v1

MAX_ADAPTERS = 65536  # that are remembered
MAX_SPREAD = 16.0  # replicas for one adapter: each is a channel of its own
STEP, CALM_STEP = 0.02, 0.002  # of a replica more after a reply where some wait, fewer where none does
MAX_MOVED = 0.5  # of a replica's adapters
MOVED_SPREAD = 1.5  # an adapter of more replicas than that keeps its home among them
MOVED_GAIN = 0.2  # of its adapters, for a wait of twice the mean: in proportion, for a wait follows late what moves
MOVED_SMOOTHING = 0.004  # of what is to move, a new reply's weight
REFUSED_S = 5.0  # a replica that has no room counts as one where requests wait so long
MAX_WAIT_BATCHES = 2.0  # a replica that is merely busy has requests wait for the batch that computes, and the next
MIN_WAIT_S = 0.05  # to pass a shorter wait by is not worth a load elsewhere
SMOOTHING = 0.2  # of what is known of a replica's wait, a new reply's weight
FORGET_S = 5.0  # what a replica said so long ago says nothing
LOOK_S = 0.1  # between looks at all replicas

POINTS = 256  # of each replica on the ring, however many there are: with a ring of one size all lose some to a new one
MAX_POINTS = 1 << 20  # of all
ROUTE = "x-adapter"  # the header that is hashed


@dataclass(slots=True)
class _Home:
    """Replicas of an adapter in the order of the ring, as far as replies told, and over how many its requests go.

    Of a spread of 1.5 every third request goes to the second one.
    """

    chain: list[str] = field(default_factory=list)
    spread: float = 1.0

    def move(self, step: float) -> None:
        self.spread = min(MAX_SPREAD, len(self.chain) + 1.0, max(1.0, self.spread + step))


@dataclass(slots=True)
class _Replica:
    """
    wait_s   in its queue, of late
    seen_at  when it replied last, by the clock
    moved    share of the adapters whose home it is that are sent to the next one instead
    """

    wait_s: float
    seen_at: float
    moved: float = 0.0


class Routing:
    """What one client has learned. Not for several threads at a time.

    clock   seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._homes: OrderedDict[str, _Home] = OrderedDict()
        self._replicas: dict[str, _Replica] = {}  # that replied of late
        self._mean_s = 0.0  # of their waits
        self._looked_at = -math.inf

    def avoided(self, adapter: str) -> tuple[str, ...]:
        """The replicas that the next request for `adapter` is to pass by; none where the ring decides alone."""
        self._look()
        home = self._homes.get(adapter)
        if home is None or not home.chain:
            return ()
        return tuple(home.chain[: self._first(adapter, home) + int(random.random() * home.spread)])

    def asked(self, adapter: str, avoided: tuple[str, ...]) -> tuple[str, ...]:
        """The replica that a request which passes `avoided` by goes to now, if it is known."""
        home, place = self._homes.get(adapter), len(avoided)
        if home is None or tuple(home.chain[:place]) != avoided:
            return ()
        return tuple(home.chain[place : place + 1])

    def answered(self, adapter: str, response: v1.PredictResponse, avoided: tuple[str, ...]) -> None:
        """Learn from a reply to a request that passed `avoided` by."""
        if not response.replica:
            return
        self._note_wait(response.replica, _seconds(response.timings.queue))
        home, place = self._home(adapter), len(avoided)
        if tuple(home.chain[:place]) != avoided:
            return  # what was known then is not so any more
        if home.chain[place : place + 1] != [response.replica]:  # the ring goes on otherwise than before, or is new
            home.chain[place:] = [response.replica]
        self._adjust(adapter, home, place, max(MAX_WAIT_BATCHES * _seconds(response.timings.compute), MIN_WAIT_S))

    def refused(self, adapter: str, avoided: tuple[str, ...]) -> None:
        """Learn that a replica had no room for a request."""
        home = self._homes.get(adapter)
        if home is not None and tuple(home.chain[: len(avoided)]) == avoided and len(avoided) < len(home.chain):
            self._note_wait(home.chain[len(avoided)], REFUSED_S)
            self._adjust(adapter, home, len(avoided), MIN_WAIT_S)

    def _look(self) -> None:
        """Forget replicas that did not reply of late, take the mean of the others: now and then, they may be many."""
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        self._replicas = {name: one for name, one in self._replicas.items() if now - one.seen_at < FORGET_S}
        self._mean_s = sum(one.wait_s for one in self._replicas.values()) / max(1, len(self._replicas))

    def _first(self, adapter: str, home: _Home) -> int:
        """The place in the chain that the adapter's requests go to while it is not busy: 1 if it moved."""
        replica = self._replicas.get(home.chain[0]) if home.chain and home.spread <= MOVED_SPREAD else None
        return int(replica is not None and _draw(adapter) < replica.moved)

    def _adjust(self, adapter: str, home: _Home, place: int, most_s: float) -> None:
        """More replicas while some wait is too long and the last that was added waits less; slowly fewer when calm.

        place    in the chain, of the replica that replied
        most_s   of a wait that is none
        """
        first = min(place, self._first(adapter, home))
        waits = [self._wait_s(name) for name in home.chain[first : first + math.ceil(home.spread)]]
        if max(waits, default=0.0) <= most_s:
            home.move(-CALM_STEP)
        else:
            home.move(STEP if len(waits) == 1 or waits[-1] < max(waits) else -STEP)
        if (replica := self._replicas.get(home.chain[0])) is not None:
            target = MOVED_GAIN * (replica.wait_s / max(most_s, self._mean_s) - 1)
            replica.moved += MOVED_SMOOTHING * (min(MAX_MOVED, max(0.0, target)) - replica.moved)

    def _home(self, adapter: str) -> _Home:
        home = self._homes.setdefault(adapter, _Home())
        self._homes.move_to_end(adapter)
        if len(self._homes) > MAX_ADAPTERS:
            self._homes.popitem(last=False)
        return home

    def _wait_s(self, name: str) -> float:
        replica = self._replicas.get(name)
        return replica.wait_s if replica is not None else 0.0

    def _note_wait(self, name: str, wait_s: float) -> None:
        now, replica = self._clock(), self._replicas.get(name)
        if replica is None:
            self._replicas[name] = _Replica(wait_s, now)
            self._mean_s += (wait_s - self._mean_s) / len(self._replicas)
        else:
            replica.wait_s += SMOOTHING * (wait_s - replica.wait_s)
            replica.seen_at = now


def _draw(adapter: str) -> float:
    """A number from 0 to 1 for each name, the same in every client; the ring uses another hash."""
    return zlib.crc32(adapter.encode()) / 2**32


def _seconds(duration: Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def ring_options(num_replicas: int) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """gRPC's balancing for so many replicas: what the service config says, and the channel's options."""
    points = min(MAX_POINTS, POINTS * num_replicas)
    ring = {"minRingSize": points, "maxRingSize": points, "requestHashHeader": ROUTE}
    # a replica that drains, or whose device failed, says so to those who watch its health: the next one is asked
    balancing = {"loadBalancingConfig": [{"ring_hash_experimental": ring}], "healthCheckConfig": {"serviceName": ""}}
    return balancing, [("grpc.lb.ring_hash.ring_size_cap", points)]


def target_of(addresses: Sequence[tuple[str, int]]) -> str:
    """gRPC's name for a fixed list of IP addresses and ports, all of one family."""
    is_six = ipaddress.ip_address(addresses[0][0]).version == 6
    hosts = ",".join(f"[{host}]:{port}" if is_six else f"{host}:{port}" for host, port in addresses)
    return f"ipv{6 if is_six else 4}:{hosts}"


def merged(service_config: str, balancing: dict[str, Any]) -> str:
    """A service config that balances so too."""
    return json.dumps({**json.loads(service_config), **balancing})
