from __future__ import annotations

import asyncio
import random

import pytest
from fakes import make_adapter, make_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core import Sample
from server.scheduler.fairness import DeficitRoundRobin
from server.scheduler.queues import OLDEST_EVERY, Queue


def make_queue() -> Queue:
    return Queue(DeficitRoundRobin())


def next_of(queue: Queue) -> Sample:
    sample = queue.next()
    assert sample is not None
    return sample


def served(queue: Queue) -> list[Sample]:
    """Everything, in the order of service."""
    taken = []
    while queue.num_samples:
        taken.append(next_of(queue))
        queue.take(taken[-1])
    return taken


async def test_counts_samples_and_tokens() -> None:
    queue = make_queue()
    for num_tokens in (3, 5):
        queue.push(make_sample(num_tokens=num_tokens))
    assert (queue.num_samples, queue.num_tokens) == (2, 8)


async def test_oldest_is_next_across_adapters() -> None:
    queue = make_queue()
    samples = [make_sample(make_adapter(name)) for name in ("a", "b", "a")]
    for sample in samples:
        queue.push(sample)
    assert served(queue) == samples


async def test_next_leaves_the_sample_in_the_queue() -> None:
    queue = make_queue()
    queue.push(make_sample())
    assert queue.next() is queue.next()
    assert queue.num_samples == 1


async def test_waiting_for_gives_only_this_target_oldest_first() -> None:
    queue = make_queue()
    samples = [make_sample(make_adapter(name)) for name in ("a", "b", "c", "b", "a")]
    for sample in samples:
        queue.push(sample)
    assert queue.waiting_for("digest-b") == [samples[i] for i in (1, 3)]
    assert queue.waiting_for("digest-unknown") == []


async def test_a_higher_priority_goes_first_among_its_tenants_samples() -> None:
    queue = make_queue()
    for priority in (0, -1, 5, 0, 5):
        queue.push(make_sample(priority=priority))
    queue.push(make_sample(tenant="other", priority=9))
    assert [sample.priority for sample in served(queue) if not sample.tenant] == [5, 5, 0, 0, -1]


@pytest.mark.parametrize("num_before", [0, 3, 20])
async def test_whoever_waits_longest_is_served_within_its_bound(num_before: int) -> None:
    """However many of a higher priority keep coming."""
    queue = make_queue()
    for _ in range(num_before):
        queue.push(make_sample())
    queue.push(last := make_sample(priority=-5))
    num_served = 0
    while last in queue:
        queue.push(make_sample(priority=9))
        queue.take(next_of(queue))
        num_served += 1
    assert num_served <= OLDEST_EVERY * (num_before + 1)


async def test_tenants_take_turns() -> None:
    queue = make_queue()
    for tenant in ("greedy",) * 10 + ("modest",) * 2:
        queue.push(make_sample(num_tokens=512, tenant=tenant))
    order = []
    for _ in range(4):
        sample = queue.next()
        assert sample is not None
        queue.take(sample)
        order.append(sample.tenant)
    assert sorted(order) == ["greedy", "greedy", "modest", "modest"]


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_books_balance_after_any_order_of_pushes_and_removals(seed: int) -> None:
    async def scenario() -> None:
        rng, queue = random.Random(seed), make_queue()
        inside: list[Sample] = []
        for _ in range(60):
            if inside and rng.random() < 0.45:
                queue.remove(inside.pop(rng.randrange(len(inside))))
            elif len(inside) < 20:
                sample = make_sample(
                    make_adapter(rng.choice("abc")),
                    rng.randint(1, 9),
                    tenant=rng.choice("xy"),
                    priority=rng.choice((0, 1)),
                )
                queue.push(sample)
                inside.append(sample)
            queue.check_integrity()
            assert queue.waiting() == inside or set(queue.waiting()) == set(inside)
        for sample in inside:
            queue.remove(sample)
        assert (queue.num_samples, queue.num_tokens, queue.next()) == (0, 0, None)

    asyncio.run(scenario())
