"""A thousand replicas and a million adapters: what the project's own policies make of them.

Routing, books and orders are the real ones; devices and the network are numbers. The ring is gRPC's, computed here.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import xxhash
from numpy.typing import NDArray
from rich.progress import Progress

from adapterd import routing
from adapterd.routing import POINTS, Routing
from adapterd.v1 import inference_pb2 as v1
from adapters_cache.books import Books, Entry
from loadtest.bench import machine
from loadtest.children import served
from loadtest.fleet.popularity import zipf
from loadtest.scale_origin import NUM_FOLDERS, NUM_ORDERS, OriginRow
from loadtest.scale_origin import measure as measure_origin
from loadtest.tiny import make_base
from server.core import Adapter, Tier
from server.metrics import Metrics

COUNTS = (10, 100, 1000)
GRPC_CAP = 4096  # points of a whole ring, where nobody asks for more
BATCH_S, BATCH_SAMPLES = 0.02, 4  # of a device: small ones, for each request is simulated
MAX_QUEUE_S = 5.0  # api.max_queue_s
NUM_CLIENTS = 16
OFFERED = 0.5  # of what all devices can do
EXPONENTS = (0.8, 1.0)
CLIENT_CALLS = 5000


@dataclass(frozen=True, slots=True)
class Plan:
    """
    num_requests  that fill the caches, and as many that are counted
    room          adapters that fit onto one replica
    num_batches   of each device in the simulation of load, after as many that are not counted
    num_folders, num_orders   that are looked at and read, for what each of them costs
    """

    counts: tuple[int, ...] = COUNTS
    num_adapters: int = 1_000_000
    num_requests: int = 1_000_000
    room: int = 5_000
    num_batches: int = 1000
    num_folders: int = NUM_FOLDERS
    num_orders: int = NUM_ORDERS


@dataclass(frozen=True, slots=True)
class RingRow:
    """busiest   adapters of the busiest replica over the mean; `moved`: of all, when one replica is added"""

    num_replicas: int
    points: int
    busiest: float
    moved: float


@dataclass(frozen=True, slots=True)
class CacheRow:
    """Share of the requests that found their adapter, of those for adapters that somebody had asked for before."""

    num_replicas: int
    by_adapter: float
    at_random: float


@dataclass(frozen=True, slots=True)
class LoadRow:
    """
    hottest     what the most popular adapter asks for, in replicas
    copies      places that hold an adapter, for each adapter that was asked for
    """

    num_replicas: int
    exponent: float
    spread: float
    hottest: float
    p50_s: float
    p99_s: float
    refused: float
    copies: float


@dataclass(frozen=True, slots=True)
class ClientRow:
    """A real client whose list has so many replicas, all of them one server at different addresses.

    first_s     until its first call is answered: the list, the ring, a connection
    ring_mib    that it then holds more than before; `held_mib`: once it is connected to all that it asked
    call_s      of a call, once everything is connected
    """

    num_replicas: int
    first_s: float
    ring_mib: float
    held_mib: float
    call_s: float


@dataclass(frozen=True, slots=True)
class ScaleReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    rings: list[RingRow]
    caches: list[CacheRow]
    loads: list[LoadRow]
    clients: list[ClientRow]
    origin: OriginRow


class Ring:
    """gRPC's ring hash over addresses: `points` for each, at the hashes of "address_0", "address_1", ..."""

    def __init__(self, addresses: Sequence[str], points: int) -> None:
        hashes = [xxhash.xxh64_intdigest(f"{address}_{i}".encode()) for address in addresses for i in range(points)]
        order = np.argsort(np.array(hashes, np.uint64))
        self._hashes = np.array(hashes, np.uint64)[order]
        self._replicas = (order // points).astype(np.int32)

    def homes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The replica, by its number, of each hash of a header."""
        return self._replicas[np.searchsorted(self._hashes, hashes) % len(self._hashes)]

    def next(self, hashed: int, avoided: Sequence[int]) -> int:
        """The first replica from there on that is not avoided."""
        at = int(np.searchsorted(self._hashes, np.uint64(hashed)))
        while (found := int(self._replicas[at % len(self._replicas)])) in avoided:
            at += 1
        return found


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:50051"


def hashes_of(num_adapters: int) -> NDArray[np.uint64]:
    return np.array([xxhash.xxh64_intdigest(f"tenant-{i}".encode()) for i in range(num_adapters)], np.uint64)


def run(plan: Plan, command: str) -> ScaleReport:
    with Progress() as bar:
        total = len(plan.counts) * (2 + 1 + 2 * len(EXPONENTS) + 1)
        task = bar.add_task("scale", total=total)
        hashes = hashes_of(plan.num_adapters)
        rings, caches, loads, clients = [], [], [], []
        for number in plan.counts:
            for points in (max(1, GRPC_CAP // number), POINTS):
                rings.append(_ring(number, points, hashes))
                bar.advance(task)
            caches.append(_cache(plan, number, hashes))
            bar.advance(task)
            for exponent in EXPONENTS:
                for spread in (1.0, routing.MAX_SPREAD):
                    loads.append(_load(plan, number, exponent, spread, hashes))
                    bar.advance(task)
            clients.append(_client(number))
            bar.advance(task)
        origin = measure_origin(plan.num_folders, plan.num_orders)
    return ScaleReport(machine("cpu", "float32"), command, plan, rings, caches, loads, clients, origin)


def _ring(number: int, points: int, hashes: NDArray[np.uint64]) -> RingRow:
    homes = Ring([address(i) for i in range(number)], points).homes(hashes)
    # one more, and as many points as gRPC then gives to each
    more = Ring([address(i) for i in range(number + 1)], points if points == POINTS else GRPC_CAP // (number + 1) or 1)
    counts = np.bincount(homes, minlength=number)
    return RingRow(number, points, float(counts.max() / counts.mean()), float((homes != more.homes(hashes)).mean()))


@dataclass(frozen=True, slots=True)
class _Named:
    digest: str


class _Cache:
    """One replica's books, with adapters of one byte."""

    def __init__(self, room: int, metrics: Metrics) -> None:
        self._books = Books(Tier.HOST, room, metrics, lambda entry: None)

    def has(self, name: str) -> bool:
        entry = self._books.find(name)
        is_there = entry is not None
        if entry is None:
            assert self._books.make_room(1)
            entry = Entry(cast(Adapter, _Named(name)), 1)
            self._books.add(entry)
        self._books.lease(entry)
        self._books.release(entry)
        return is_there


def _cache(plan: Plan, number: int, hashes: NDArray[np.uint64]) -> CacheRow:
    rng = np.random.default_rng(3)
    requests = zipf(plan.num_adapters, 2 * plan.num_requests, rng, 1.0)
    routed = Ring([address(i) for i in range(number)], POINTS).homes(hashes)[requests]
    by_chance = rng.integers(0, number, len(requests))
    rates = [_replay(plan, number, requests, replicas) for replicas in (routed, by_chance)]
    return CacheRow(number, *rates)


def _replay(plan: Plan, number: int, requests: NDArray[np.int64], replicas: NDArray[Any]) -> float:
    metrics = Metrics()
    caches = [_Cache(plan.room, metrics) for _ in range(number)]
    seen, hits, counted = set[int](), 0, 0
    for i, (adapter, replica) in enumerate(zip(requests.tolist(), replicas.tolist(), strict=True)):
        is_there = caches[replica].has(str(adapter))
        if i >= plan.num_requests and adapter in seen:
            counted += 1
            hits += is_there
        seen.add(adapter)
    return hits / max(counted, 1)


def _load(plan: Plan, number: int, exponent: float, spread: float, hashes: NDArray[np.uint64]) -> LoadRow:
    """Every device does a batch at a time, all in step; callers are spread over clients, each with its own routing."""
    moved = routing.MAX_MOVED if spread > 1.0 else 0.0
    with patch.multiple(routing, MAX_SPREAD=spread, MAX_MOVED=moved):
        return _Loaded(plan, number, exponent, hashes).run(spread)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a request that waits."""

    client: Routing
    name: str
    replica: int
    wait_s: float
    avoided: tuple[str, ...]


class _Loaded:
    def __init__(self, plan: Plan, number: int, exponent: float, hashes: NDArray[np.uint64]) -> None:
        self._plan, self._number, self._exponent = plan, number, exponent
        self._ring = Ring([address(i) for i in range(number)], POINTS)
        self._names = {address(i): i for i in range(number)}
        self._hashes, self._homes = hashes, self._ring.homes(hashes)
        self._clients = [Routing(clock=lambda: self._now) for _ in range(NUM_CLIENTS)]
        self._now = 0.0
        self._lines = np.zeros(number)  # requests that wait at each replica
        self._due: list[list[Answer]] = [[] for _ in range(int(MAX_QUEUE_S / BATCH_S) + 2)]  # by the batch, in a ring
        self._places = set[tuple[int, int]]()
        self._rng = np.random.default_rng(4)

    def run(self, spread: float) -> LoadRow:
        random.seed(5)
        plan, per_tick = self._plan, int(OFFERED * self._number * BATCH_SAMPLES)
        drawn = zipf(plan.num_adapters, 2 * plan.num_batches * per_tick, self._rng, self._exponent)
        waits: list[float] = []
        num_refused = 0
        for tick in range(2 * plan.num_batches):
            outcomes = list(self._tick(drawn[tick * per_tick : (tick + 1) * per_tick]))
            if tick >= plan.num_batches:
                waits += [wait for wait in outcomes if wait is not None]
                num_refused += outcomes.count(None)
        shares = np.bincount(drawn, minlength=plan.num_adapters) / len(drawn)
        return LoadRow(
            num_replicas=self._number,
            exponent=self._exponent,
            spread=spread,
            hottest=float(shares.max() * per_tick / BATCH_SAMPLES),
            p50_s=float(np.quantile(waits, 0.5)),
            p99_s=float(np.quantile(waits, 0.99)),
            refused=num_refused / (plan.num_batches * per_tick),
            copies=len(self._places) / len({adapter for adapter, _ in self._places}),
        )

    def _tick(self, adapters: NDArray[np.int64]) -> Iterator[float | None]:
        """The wait of each request that comes in the time of one batch, seconds; None for one that is refused."""
        self._now += BATCH_S
        tick = round(self._now / BATCH_S)
        answers, self._due[tick % len(self._due)] = self._due[tick % len(self._due)], []
        for answer in answers:  # clients learn of a wait when it is over
            answer.client.answered(answer.name, _reply(answer), answer.avoided)
        clients = self._rng.integers(0, NUM_CLIENTS, len(adapters)).tolist()
        for adapter, number in zip(adapters.tolist(), clients, strict=True):
            client, name = self._clients[number], str(adapter)
            avoided = client.avoided(name)
            replica = int(self._homes[adapter])
            if avoided:
                replica = self._ring.next(int(self._hashes[adapter]), [self._names[one] for one in avoided])
            self._places.add((adapter, replica))
            num_before = self._lines[replica] // BATCH_SAMPLES
            wait_s = float(num_before + 0.5) * BATCH_S
            if wait_s > MAX_QUEUE_S:
                client.refused(name, avoided)
                yield None
                continue
            self._lines[replica] += 1
            self._due[(tick + int(num_before) + 1) % len(self._due)].append(
                Answer(client, name, replica, wait_s, avoided)
            )
            yield wait_s
        self._lines = np.maximum(0.0, self._lines - BATCH_SAMPLES)


def _reply(answer: Answer) -> v1.PredictResponse:
    """As the replica would answer."""
    reply = v1.PredictResponse(replica=address(answer.replica))
    reply.timings.compute.nanos = int(BATCH_S * 1e9)
    reply.timings.queue.seconds, reply.timings.queue.nanos = divmod(int(answer.wait_s * 1e9), 1_000_000_000)
    return reply


def _client(number: int) -> ClientRow:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        base = make_base(folder / "base")
        (folder / "adapters").mkdir()
        options = ["--base", str(base), "--adapters", str(folder / "adapters"), "--batch-tokens", "1024"]
        options += ["--host", "0.0.0.0", "--allow-anonymous", "--set", f"api.replicas=file:{folder}/replicas"]
        options += ["--set", "api.reload_s=0.2", "--set", "api.max_in_flight=4096"]
        with served(*options) as server:
            port = server.address.rpartition(":")[2]
            listed = "\n".join(f"127.0.{i >> 8}.{i & 255}:{port}" for i in range(256, 256 + number))
            (folder / "replicas").write_text(listed)
            time.sleep(1)
            command = [sys.executable, "-m", "loadtest.scale_client", server.address, str(CLIENT_CALLS)]
            found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return ClientRow(number, found["first_s"], found["ring_mib"], found["held_mib"], found["warm_s"] / CLIENT_CALLS)
