from __future__ import annotations

import asyncio
import random

import pytest
from fakes import make_adapter
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from adapters_cache.residency import Residency
from server.core import Adapter, SlotLease, Tier
from server.errors import Overloaded, TooLarge
from server.metrics import Metrics


class Slots:
    """Device slots that check how they are used."""

    def __init__(self) -> None:
        self.freed: list[int] = []

    def slot_bytes(self, adapter: Adapter) -> int:
        return adapter.size_bytes

    def free(self, slot: int) -> None:
        self.freed.append(slot)


def acquire(residency: Residency, adapter: Adapter) -> SlotLease:
    lease = residency.acquire(adapter)
    assert lease is not None
    return lease


@pytest.fixture
def slots() -> Slots:
    return Slots()


@pytest.fixture
def residency(slots: Slots, metrics: Metrics) -> Residency:
    return Residency(slots, 300, metrics)


A, B, C, D = (make_adapter(name) for name in "abcd")  # 100 bytes each


def use(residency: Residency, *adapters: Adapter) -> None:
    for adapter in adapters:
        acquire(residency, adapter).release()


def test_base_alone_takes_slot_zero_and_no_room(residency: Residency) -> None:
    lease = residency.acquire(None)
    assert lease is not None and (lease.slot, lease.adapter, lease.is_fresh) == (0, None, False)
    lease.release()
    assert residency.used_bytes == 0


def test_only_the_first_lease_is_fresh(residency: Residency) -> None:
    first, second = acquire(residency, A), acquire(residency, A)
    assert (first.is_fresh, second.is_fresh) == (True, False)
    assert first.slot == second.slot > 0
    first.release()
    second.release()
    assert not acquire(residency, A).is_fresh


def test_least_recently_used_goes_first(residency: Residency, slots: Slots) -> None:
    use(residency, A, B, C, A)
    use(residency, D)
    assert [residency.bytes_of(adapter.digest) for adapter in (A, B, C, D)] == [100, 0, 100, 100]
    assert slots.freed == [2]


def test_eviction_skips_leased_slot(residency: Residency) -> None:
    lease = acquire(residency, A)
    use(residency, B, C, D)
    assert residency.bytes_of(A.digest) and not residency.bytes_of(B.digest)
    lease.release()


def test_no_room_gives_none_until_a_lease_ends(residency: Residency) -> None:
    leases = [acquire(residency, adapter) for adapter in (A, B, C)]
    calls: list[bool] = []
    residency.on_room = lambda: calls.append(True)
    assert residency.acquire(D) is None
    leases[1].release()
    assert calls == [True]
    assert acquire(residency, D).slot == leases[1].slot


def test_nothing_is_evicted_where_that_would_not_do(residency: Residency) -> None:
    lease = acquire(residency, A)
    use(residency, B)
    assert residency.acquire(make_adapter("large", size_bytes=250)) is None
    assert residency.bytes_of(B.digest) == 100
    lease.release()


def test_adapter_larger_than_the_budget_is_refused_with_both_numbers(residency: Residency) -> None:
    huge = make_adapter("huge", size_bytes=301)
    for refuse in (residency.acquire, residency.check_size):
        with pytest.raises(TooLarge, match="301 bytes; device_bytes is 300"):
            refuse(huge)
    residency.check_size(make_adapter("fits", size_bytes=300))


def test_pinned_slots_stay_and_count_against_the_rest(residency: Residency) -> None:
    for adapter in (A, B):
        residency.pin(adapter.digest, True)
    use(residency, A, B, C, D)
    assert residency.bytes_of(A.digest) and residency.bytes_of(B.digest) and not residency.bytes_of(C.digest)
    with pytest.raises(Overloaded, match="pinned"):
        residency.acquire(make_adapter("large", size_bytes=101))
    residency.pin(A.digest, False)
    use(residency, make_adapter("large", size_bytes=101))
    assert not residency.bytes_of(A.digest)


def test_failed_lease_drops_the_slot(residency: Residency, slots: Slots) -> None:
    acquire(residency, A).release(failed=True)
    assert residency.used_bytes == 0 and slots.freed == [1]
    assert acquire(residency, A).is_fresh


def test_slot_that_failed_is_not_trusted_while_others_still_lease_it(residency: Residency, slots: Slots) -> None:
    first, second = acquire(residency, A), acquire(residency, A)
    first.release(failed=True)
    again = acquire(residency, A)
    assert again.is_fresh and again.slot != second.slot and not slots.freed
    second.release()
    assert slots.freed == [second.slot]
    again.release()
    residency.check_integrity()


async def test_evicted_adapter_goes_when_its_last_lease_ends(residency: Residency, slots: Slots) -> None:
    lease = acquire(residency, A)
    evicting = asyncio.create_task(residency.evict(A.digest))
    await asyncio.sleep(0)
    assert not slots.freed and not evicting.done()
    newer = acquire(residency, A)
    assert newer.is_fresh and newer.slot != lease.slot
    lease.release()
    assert await evicting == 100
    assert residency.bytes_of(A.digest) == 100
    newer.release()


async def test_evicting_what_is_not_there_frees_nothing(residency: Residency) -> None:
    assert await residency.evict("nothing") == 0


async def test_cancelled_eviction_still_frees_the_slot_later(residency: Residency, slots: Slots) -> None:
    lease = acquire(residency, A)
    evicting = asyncio.create_task(residency.evict(A.digest))
    await asyncio.sleep(0)
    evicting.cancel()
    await asyncio.wait([evicting])
    lease.release()
    assert slots.freed == [1] and residency.used_bytes == 0


def test_lease_as_a_context_manager_fails_with_its_body(residency: Residency) -> None:
    with pytest.raises(ZeroDivisionError), acquire(residency, A):  # type: ignore[attr-defined]
        raise ZeroDivisionError
    assert residency.used_bytes == 0


def test_metrics_follow(residency: Residency, metrics: Metrics) -> None:
    use(residency, A, A, B, C, D)
    text = metrics.render().decode()
    expected = {"hits_total": 1, "misses_total": 4, "evictions_total": 1, "tier_bytes": 300, "tier_adapters": 3}
    for series, value in expected.items():
        assert f'adapterd_{series}{{tier="{Tier.DEVICE.value}"}} {value}.0' in text


class Machine(RuleBasedStateMachine):
    """Random use of a small device against what must hold at any time."""

    leases = Bundle("leases")
    adapters = [make_adapter(f"m{i}", size_bytes=40 + 30 * i) for i in range(6)]

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots()
        self.residency = Residency(self.slots, 300, Metrics())
        self.held: dict[int, tuple[str, int]] = {}  # slot -> digest, leases on it
        self.pinned: set[str] = set()

    @rule(target=leases, adapter=st.sampled_from(adapters))
    def acquire(self, adapter: Adapter) -> object:
        before = self.residency.used_bytes
        self.slots.freed.clear()
        try:
            lease = self.residency.acquire(adapter)
        except Overloaded:
            assert self.pinned
            return multiple()
        assert not (set(self.slots.freed) & self.held.keys()), "a leased slot was evicted"
        if lease is None:
            assert self.residency.used_bytes == before and self.held
            return multiple()
        digest, count = self.held.get(lease.slot, (adapter.digest, 0))
        assert digest == adapter.digest, "two adapters in one slot"
        assert not (lease.is_fresh and count)
        self.held[lease.slot] = digest, count + 1
        return lease

    @rule(lease=consumes(leases), failed=st.booleans())
    def release(self, lease: SlotLease, failed: bool) -> None:
        digest, count = self.held.pop(lease.slot)
        if count > 1:
            self.held[lease.slot] = digest, count - 1
        self.slots.freed.clear()
        lease.release(failed=failed)
        assert not (set(self.slots.freed) & self.held.keys())

    @rule(adapter=st.sampled_from(adapters))
    def doom(self, adapter: Adapter) -> None:
        self.slots.freed.clear()
        self.residency.doom(adapter.digest)
        assert not (set(self.slots.freed) & self.held.keys())
        assert self.residency.bytes_of(adapter.digest) == 0

    @rule(adapter=st.sampled_from(adapters), is_pinned=st.booleans())
    def pin(self, adapter: Adapter, is_pinned: bool) -> None:
        self.residency.pin(adapter.digest, is_pinned)
        (self.pinned.add if is_pinned else self.pinned.discard)(adapter.digest)

    @precondition(lambda self: not self.held)
    @rule()
    def everything_comes_back(self) -> None:
        for adapter in self.adapters:
            self.residency.doom(adapter.digest)
        assert self.residency.used_bytes == 0

    @invariant()
    def books_balance(self) -> None:
        self.residency.check_integrity()
        assert self.residency.used_bytes <= 300


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40)


async def test_random_concurrent_use_never_mixes_slots_up(residency: Residency) -> None:
    """Callers that wait for room, as the scheduler does, all get their turn."""
    rng, room, written = random.Random(5), asyncio.Event(), {}
    residency.on_room = room.set

    async def caller(adapter: Adapter) -> None:
        while (lease := residency.acquire(adapter)) is None:
            room.clear()
            await room.wait()
        if lease.is_fresh:
            written[lease.slot] = adapter.digest
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
            assert written[lease.slot] == adapter.digest
        lease.release()

    adapters = [make_adapter(f"r{i}", size_bytes=rng.randrange(20, 200)) for i in range(20)]
    await asyncio.gather(*(caller(rng.choice(adapters)) for _ in range(500)))
    residency.check_integrity()
    for adapter in adapters:
        residency.doom(adapter.digest)
    assert residency.used_bytes == 0
