"""What one client learns about replicas from what they say, without a network."""

from __future__ import annotations

import pytest

from adapterd.routing import Routing
from adapterd.v1 import inference_pb2 as v1

ADAPTERS = [f"adapter-{number}" for number in range(400)]
HOMES = ("a:1", "b:1", "c:1")


def home_of(adapter: str) -> int:
    return int(adapter.rpartition("-")[2]) % len(HOMES)


def ask_all(client: Routing, waits_s: tuple[float, ...], times: int = 1) -> None:
    """Requests for every adapter, at replicas where they wait so long."""
    for _ in range(times):
        for adapter in ADAPTERS:
            avoided = client.avoided(adapter)
            place = (home_of(adapter) + len(avoided)) % len(HOMES)
            reply = v1.PredictResponse(replica=HOMES[place])
            reply.timings.queue.FromNanoseconds(int(waits_s[place] * 1e9))
            reply.timings.compute.FromNanoseconds(40_000_000)
            client.answered(adapter, reply, avoided)


def moved(client: Routing) -> set[str]:
    """Adapters of which no request goes to their home."""
    return {adapter for adapter in ADAPTERS if all(client.avoided(adapter) for _ in range(100))}


@pytest.fixture
def client() -> Routing:
    return Routing(clock=lambda: 0.0)


def test_a_replica_where_requests_wait_gives_some_of_its_adapters_away(client: Routing) -> None:
    ask_all(client, (1.0, 0.01, 0.01), times=4)  # too few for each adapter to spread by itself
    given = moved(client)
    assert {home_of(adapter) for adapter in given} == {0}
    assert 5 <= len(given) <= 60


def test_they_come_back_when_it_is_calm(client: Routing) -> None:
    ask_all(client, (1.0, 0.01, 0.01), times=4)
    assert moved(client)
    ask_all(client, (0.01, 0.01, 0.01), times=10)
    assert not moved(client)


def test_where_all_wait_alike_none_move(client: Routing) -> None:
    ask_all(client, (1.0, 1.0, 1.0), times=4)
    assert not moved(client)


def test_clients_give_the_same_ones_away_first(client: Routing) -> None:
    other = Routing(clock=lambda: 0.0)
    ask_all(client, (1.0, 0.01, 0.01), times=4)
    ask_all(other, (1.0, 0.01, 0.01), times=6)
    assert moved(client) < moved(other)


def test_an_adapter_that_needs_several_replicas_keeps_its_home(client: Routing) -> None:
    ask_all(client, (1.0, 0.5, 0.3), times=120)
    assert not moved(client)


def test_elsewhere_is_not_where_a_request_failed(client: Routing) -> None:
    ask_all(client, (1.0, 0.01, 0.01), times=4)
    ask_all(client, (0.5, 0.5, 0.5))  # the next replica's name is known from its replies
    given = moved(client)
    assert given
    for adapter in ADAPTERS[::3]:
        avoided = HOMES[:1] if adapter in given else ()
        assert client.failed(adapter, avoided) == HOMES[len(avoided) : len(avoided) + 1]
