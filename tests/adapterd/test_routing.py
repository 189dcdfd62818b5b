"""What one client learns about replicas from what they say, without a network."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
import pytest
import xxhash

from adapterd import routing
from adapterd.routing import POINTS, Routing
from adapterd.v1 import inference_pb2 as v1
from loadtest.scale import Ring

ADAPTERS = [f"adapter-{number}" for number in range(400)]
HASHES = {adapter: xxhash.xxh64_intdigest(adapter.encode()) for adapter in ADAPTERS}
HOMES = ("a:1", "b:1", "c:1")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def home_of(adapter: str) -> int:
    return int(adapter.rpartition("-")[2]) % len(HOMES)


def reply(client: Routing, adapter: str, avoided: tuple[str, ...], waits_s: tuple[float, ...]) -> None:
    place = (home_of(adapter) + len(avoided)) % len(HOMES)
    response = v1.PredictResponse(replica=HOMES[place])
    response.timings.queue.FromNanoseconds(int(waits_s[place] * 1e9))
    response.timings.compute.FromNanoseconds(40_000_000)
    client.answered(adapter, response, avoided)


def ask_all(client: Routing, clock: Clock, waits_s: tuple[float, ...], times: int = 1) -> None:
    """Requests for every adapter, at replicas where they wait so long."""
    for _ in range(times):
        for adapter in ADAPTERS:
            clock.now += 0.001
            reply(client, adapter, client.avoided(adapter), waits_s)


def moved(client: Routing) -> set[str]:
    """Adapters of which no request goes to their home."""
    return {adapter for adapter in ADAPTERS if all(client.avoided(adapter) for _ in range(100))}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Routing:
    return Routing(clock)


def test_a_replica_where_requests_wait_gives_some_of_its_adapters_away(client: Routing, clock: Clock) -> None:
    ask_all(client, clock, (1.0, 0.01, 0.01), times=4)  # too few for each adapter to spread by itself
    given = moved(client)
    assert {home_of(adapter) for adapter in given} == {0}
    assert 5 <= len(given) <= 60


def test_they_come_back_when_it_is_calm(client: Routing, clock: Clock) -> None:
    ask_all(client, clock, (1.0, 0.01, 0.01), times=4)
    assert moved(client)
    ask_all(client, clock, (0.01, 0.01, 0.01), times=10)
    assert not moved(client)


def test_they_come_back_when_nothing_was_heard_of_their_home_for_a_while(client: Routing, clock: Clock) -> None:
    ask_all(client, clock, (1.0, 0.01, 0.01), times=4)
    assert moved(client)
    clock.now += 10
    assert not moved(client)


def test_where_all_wait_alike_none_move(client: Routing, clock: Clock) -> None:
    ask_all(client, clock, (1.0, 1.0, 1.0), times=4)
    assert not moved(client)


def test_nor_where_little_is_heard_of_them(client: Routing, clock: Clock) -> None:
    for _ in range(300):
        for adapter in ADAPTERS[:6]:
            clock.now += 1 / 6
            reply(client, adapter, client.avoided(adapter), (0.5, 0.5, 0.5))
    assert not moved(client)


def test_what_falls_back_to_its_home_learns_of_its_wait(client: Routing, clock: Clock) -> None:
    """As where a client has no room for another ring."""
    ask_all(client, clock, (1.0, 0.01, 0.01), times=4)
    adapter = min(moved(client))
    for _ in range(60):
        clock.now += 0.001
        reply(client, adapter, (), (1.0, 0.01, 0.01))
    seen = Counter(len(client.avoided(adapter)) for _ in range(1000))
    assert seen[0] and seen[1]  # two replicas, its home among them


def test_a_refusal_counts_as_a_long_wait(client: Routing, clock: Clock) -> None:
    ask_all(client, clock, (0.0, 0.0, 0.0))
    for _ in range(60):
        client.refused("adapter-0", ())
    assert any(client.avoided("adapter-0") for _ in range(100))


def test_clients_give_the_same_ones_away_first(client: Routing, clock: Clock) -> None:
    other = Routing(clock)
    ask_all(client, clock, (1.0, 0.01, 0.01), times=4)
    ask_all(other, clock, (1.0, 0.01, 0.01), times=6)
    assert moved(client) < moved(other)


def test_an_adapter_that_needs_several_replicas_keeps_its_home(client: Routing, clock: Clock) -> None:
    ask_all(client, clock, (1.0, 0.5, 0.3), times=120)
    assert not moved(client)


def test_what_was_asked_is_known_when_a_call_goes(client: Routing, clock: Clock) -> None:
    ask_all(client, clock, (1.0, 0.01, 0.01), times=4)
    ask_all(client, clock, (0.5, 0.5, 0.5))  # the next replica's name is known from its replies
    given = moved(client)
    assert given
    for adapter in ADAPTERS[::3]:
        avoided = HOMES[:1] if adapter in given else ()
        assert client.asked(adapter, avoided) == HOMES[len(avoided) : len(avoided) + 1]


def ring_of(seed: int) -> tuple[list[str], Ring]:
    rng = random.Random(seed)
    addresses = [f"127.0.0.1:{rng.randrange(20000, 60000)}" for _ in range(4)]
    return addresses, Ring(addresses, POINTS)


def answered_share(seed: int) -> float:
    """Of what four replicas can answer, each eight requests in 0.1 s, with 64 callers for each who wait for answers."""
    (addresses, ring), rng, clock = ring_of(seed), random.Random(seed), Clock()
    client, lines = Routing(clock), [deque[tuple[str, tuple[str, ...], float]]() for _ in addresses]

    def ask() -> None:
        adapter = rng.choice(ADAPTERS)
        avoided = client.avoided(adapter)
        place = ring.next(HASHES[adapter], [addresses.index(address) for address in avoided])
        lines[place].append((adapter, avoided, clock.now))

    for _ in range(4 * 64):
        ask()
    num_answered = 0
    for step in range(200):
        clock.now += 0.1
        batches = [[line.popleft() for _ in range(min(8, len(line)))] for line in lines]
        for address, batch in zip(addresses, batches, strict=True):
            for adapter, avoided, asked_at in batch:
                response = v1.PredictResponse(replica=address)
                response.timings.queue.FromNanoseconds(max(0, int((clock.now - asked_at - 0.1) * 1e9)))
                response.timings.compute.FromNanoseconds(100_000_000)
                client.answered(adapter, response, avoided)
                ask()
        num_answered += sum(map(len, batches)) if step >= 100 else 0
    return num_answered / (100 * 4 * 8)


@pytest.mark.parametrize("seed", (12, 20, 36))
def test_callers_keep_replicas_busy_among_which_the_ring_divides_unevenly(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = ring_of(seed)[1].homes(np.array(list(HASHES.values()), np.uint64))
    assert np.bincount(homes).max() > 0.3 * len(ADAPTERS)
    random.seed(seed)
    assert answered_share(seed) >= 0.97
    monkeypatch.setattr(routing, "MAX_MOVED", 0.0)
    assert answered_share(seed) <= 0.95
