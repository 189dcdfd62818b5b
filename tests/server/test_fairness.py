from __future__ import annotations

from collections import Counter

from server.scheduler.fairness import DeficitRoundRobin


def serve(turns: DeficitRoundRobin, cost: dict[str, int], num_turns: int) -> Counter[str]:
    """Tokens that each tenant got, all of them having endless work of one size."""
    got: Counter[str] = Counter()
    for _ in range(num_turns):
        tenant = turns.turn(cost.__getitem__)
        assert tenant is not None
        turns.charge(tenant, cost[tenant])
        got[tenant] += cost[tenant]
    return got


def test_nobody_has_a_turn_when_nobody_waits() -> None:
    assert DeficitRoundRobin().turn(lambda tenant: 1) is None


def test_single_tenant_always_has_the_turn() -> None:
    turns = DeficitRoundRobin()
    turns.enter("a")
    assert serve(turns, {"a": 10_000}, 5) == {"a": 50_000}


def test_equal_tenants_get_equal_tokens_whatever_the_size_of_their_samples() -> None:
    turns = DeficitRoundRobin(quantum=100)
    for tenant in ("short", "long"):
        turns.enter(tenant)
    got = serve(turns, {"short": 10, "long": 90}, 1000)
    assert abs(got["short"] - got["long"]) <= 200


def test_tokens_follow_the_weights() -> None:
    turns = DeficitRoundRobin(quantum=100, weight_of=lambda tenant: 3.0 if tenant == "gold" else 1.0)
    for tenant in ("gold", "plain"):
        turns.enter(tenant)
    got = serve(turns, {"gold": 10, "plain": 10}, 4000)
    assert 2.9 < got["gold"] / got["plain"] < 3.1


def test_sample_larger_than_the_quantum_gets_its_turn() -> None:
    turns = DeficitRoundRobin(quantum=10)
    for tenant in ("a", "b"):
        turns.enter(tenant)
    assert serve(turns, {"a": 1000, "b": 1000}, 2) == {"a": 1000, "b": 1000}


def test_asking_twice_gives_the_same_tenant() -> None:
    turns = DeficitRoundRobin(quantum=100)
    for tenant in ("a", "b", "c"):
        turns.enter(tenant)
    assert turns.turn(lambda tenant: 50) == turns.turn(lambda tenant: 50)


def test_idle_tenant_saves_nothing_up() -> None:
    turns = DeficitRoundRobin(quantum=100)
    for tenant in ("a", "b"):
        turns.enter(tenant)
    turns.turn(lambda tenant: 50)
    turns.leave("b")
    serve(turns, {"a": 50}, 100)
    turns.enter("b")
    got = serve(turns, {"a": 50, "b": 50}, 100)
    assert abs(got["a"] - got["b"]) <= 200
