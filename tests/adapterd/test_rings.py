"""Which replicas a call's channel reaches, without a network: a channel is its target."""

from __future__ import annotations

import pytest

from adapterd.errors import Error
from adapterd.rings import Rings
from adapterd.v1 import inference_pb2 as v1

A, B, C = "a:1", "b:1", "c:1"
REPLICAS = {A: ("10.0.0.1", 1), B: ("10.0.0.2", 1), C: ("10.0.0.3", 1)}


@pytest.fixture
def rings() -> Rings[str]:
    rings = Rings[str](lambda target, options: target, lambda channel: None, [], 1)
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
