from __future__ import annotations

import asyncio
import random

import pytest
from fakes import make_adapter, make_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config import SchedulerConfig
from server.core import Sample
from server.errors import Overloaded
from server.scheduler.fairness import DeficitRoundRobin
from server.scheduler.queues import Queue


def make_queue(**limits: int) -> Queue:
    return Queue(SchedulerConfig(**limits), DeficitRoundRobin())


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
    taken = []
    while sample := queue.next():
        queue.take(sample)
        taken.append(sample)
    assert taken == samples


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


@pytest.mark.parametrize("limits", [{"max_queued_samples": 2}, {"max_queued_tokens": 9}])
async def test_full_queue_refuses_with_a_hint_and_changes_nothing(limits: dict[str, int]) -> None:
    queue = make_queue(**limits)
    for _ in range(2):
        queue.push(make_sample(num_tokens=4))
    with pytest.raises(Overloaded, match="limit") as refusal:
        queue.push(make_sample(num_tokens=4))
    assert refusal.value.retry_after_s > 0
    assert queue.num_samples == 2
    queue.check_integrity()


async def test_empty_queue_takes_a_sample_beyond_its_token_limit() -> None:
    queue = make_queue(max_queued_tokens=10)
    queue.push(make_sample(num_tokens=50))
    assert queue.num_tokens == 50


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


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_books_balance_after_any_order_of_pushes_and_removals(seed: int) -> None:
    async def scenario() -> None:
        rng, queue = random.Random(seed), make_queue(max_queued_samples=20)
        inside: list[Sample] = []
        for _ in range(60):
            if inside and rng.random() < 0.45:
                queue.remove(inside.pop(rng.randrange(len(inside))))
            elif len(inside) < 20:
                sample = make_sample(make_adapter(rng.choice("abc")), rng.randint(1, 9), tenant=rng.choice("xy"))
                queue.push(sample)
                inside.append(sample)
            queue.check_integrity()
            assert queue.waiting() == inside or set(queue.waiting()) == set(inside)
        for sample in inside:
            queue.remove(sample)
        assert (queue.num_samples, queue.num_tokens, queue.next()) == (0, 0, None)

    asyncio.run(scenario())
