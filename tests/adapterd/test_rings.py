"""Which replicas a call's channel reaches, without a network: a channel is its target."""

from __future__ import annotations

import pytest

from adapterd.errors import Error
from adapterd.rings import Rings
from adapterd.v1 import inference_pb2 as v1

A, B, C = "a:1", "b:1", "c:1"
REPLICAS = {A: ("10.0.0.1", 1), B: ("10.0.0.2", 1), C: ("10.0.0.3", 1)}


@pytest.fixture
def closed() -> list[str]:
    return []


@pytest.fixture
def rings(closed: list[str]) -> Rings[str]:
    rings = Rings[str](lambda target, options: target, closed.append, [], 1)
    rings.follow(REPLICAS)
    return rings


def reached(channel: str) -> set[str]:
    return {name for name, (host, port) in REPLICAS.items() if f"{host}:{port}" in channel}


def answer(rings: Rings[str], replica: str) -> None:
    with rings.use("hot") as use:
        use.answered(v1.PredictResponse(replica=replica))


def test_a_call_that_failed_is_not_sent_to_the_same_replica(rings: Rings[str]) -> None:
    answer(rings, A)
    with rings.use("hot") as lost, rings.use("hot", lost) as other:
        assert reached(other.channel) == {B, C}


def test_nor_if_others_were_answered_elsewhere_since(rings: Rings[str]) -> None:
    answer(rings, A)
    with rings.use("hot") as lost:
        answer(rings, B)  # A drains: gRPC's ring sends what is new to the next one
        with rings.use("hot", lost) as other:
            assert reached(other.channel) == {B, C}


def test_where_it_went_is_not_known_all_are_asked(rings: Rings[str]) -> None:
    with rings.use("hot") as lost, rings.use("hot", lost) as other:
        assert reached(other.channel) == {A, B, C}


def test_a_replica_that_has_left_the_list_needs_no_passing_by(rings: Rings[str]) -> None:
    answer(rings, A)
    with rings.use("hot") as lost:
        rings.follow({B: REPLICAS[B]})
        with rings.use("hot", lost) as other:
            assert reached(other.channel) == {B}


def test_once_closed_nothing_is_sent(rings: Rings[str]) -> None:
    answer(rings, A)
    with rings.use("hot") as lost:
        rings.close()
        with pytest.raises(Error, match="the client is closed"), rings.use("hot", lost):
            pass


def test_nor_where_a_client_has_as_many_channels_as_it_may(rings: Rings[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterd.rings.MAX_RINGS", 1)
    answer(rings, A)
    with rings.use("hot") as lost, rings.use("hot", lost) as other:
        assert reached(other.channel) == {B, C}


def test_a_channel_that_was_given_up_is_closed_once_with_its_last_call_or_the_client(
    rings: Rings[str], closed: list[str]
) -> None:
    with rings.use("hot"), rings.use("cold"):
        rings.follow({B: REPLICAS[B]})
        assert not closed
    assert len(closed) == 1
    with rings.use("hot") as use:
        rings.follow(REPLICAS)
        rings.close()
        assert closed[1:] == [use.channel]
    assert len(closed) == 2
