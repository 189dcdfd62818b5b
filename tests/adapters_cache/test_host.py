from __future__ import annotations

import asyncio
import random

import pytest
from fakes import make_adapter

from adapters_cache.host import HostLease, HostTier
from server.errors import Overloaded, TooLarge
from server.metrics import Metrics

A, B, C, D = (make_adapter(name) for name in "abcd")  # 100 bytes each


@pytest.fixture
def gone() -> list[str]:
    return []


@pytest.fixture
def host(metrics: Metrics, gone: list[str]) -> HostTier:
    return HostTier(300, metrics, gone.append)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_adapter_is_found_after_it_was_put(host: HostTier) -> None:
    assert host.acquire(A.digest) is None
    (await host.put(A)).release()
    with host.acquire(A.digest) or HostLease() as lease:
        assert lease.adapter is A
    assert host.used_bytes == 100


async def test_putting_a_twin_gives_the_one_that_is_there(host: HostTier) -> None:
    (await host.put(A)).release()
    lease = await host.put(make_adapter("a"))
    assert lease.adapter is A and host.used_bytes == 100


async def test_least_recently_used_goes_first(host: HostTier, gone: list[str]) -> None:
    for adapter in (A, B, C):
        (await host.put(adapter)).release()
    (host.acquire(A.digest) or HostLease()).release()
    (await host.put(D)).release()
    assert gone == [B.digest]
    host.check_integrity()


async def test_put_waits_while_everything_is_leased(host: HostTier, gone: list[str]) -> None:
    leases = [await host.put(adapter) for adapter in (A, B, C)]
    putting = asyncio.create_task(host.put(D))
    await turn()
    assert not putting.done()
    leases[1].release()
    (await putting).release()
    assert gone == [B.digest]


async def test_cancelled_put_leaves_nothing_behind(host: HostTier) -> None:
    leases = [await host.put(adapter) for adapter in (A, B, C)]
    putting = [asyncio.create_task(host.put(D)) for _ in range(2)]
    await turn()
    putting[0].cancel()
    leases[0].release()
    (await putting[1]).release()
    assert host.used_bytes == 300
    host.check_integrity()


async def test_large_adapter_is_not_overtaken_for_ever(host: HostTier) -> None:
    leases = [await host.put(adapter) for adapter in (A, B, C)]
    order: list[str] = []

    async def put(name: str, size_bytes: int) -> None:
        lease = await host.put(make_adapter(name, size_bytes=size_bytes))
        order.append(name)
        lease.release()

    tasks = [asyncio.create_task(put("large", 300)), asyncio.create_task(put("small", 50))]
    for lease in leases:
        await turn()
        lease.release()
    await asyncio.gather(*tasks)
    assert order == ["large", "small"]


async def test_adapter_that_is_there_does_not_wait_behind_one_that_needs_room(host: HostTier) -> None:
    leases = [await host.put(adapter) for adapter in (A, B, C)]
    waiting = asyncio.create_task(host.put(make_adapter("large", size_bytes=300)))
    await turn()
    (await host.put(make_adapter("a"))).release()
    assert not waiting.done()
    for lease in leases:
        lease.release()
    (await waiting).release()


async def test_adapter_that_can_never_fit_is_refused(host: HostTier) -> None:
    with pytest.raises(TooLarge, match="301 bytes; host_bytes is 300"):
        await host.put(make_adapter("huge", size_bytes=301))
    (await host.put(A)).release()
    host.pin(A.digest, True)
    with pytest.raises(Overloaded, match="pinned adapters hold 100"):
        await host.put(make_adapter("large", size_bytes=201))


async def test_pinned_adapter_stays(host: HostTier) -> None:
    host.pin(A.digest, True)
    for adapter in (A, B, C, D):
        (await host.put(adapter)).release()
    assert host.is_held(A.digest)


async def test_doomed_adapter_goes_with_its_last_lease_and_is_not_found(host: HostTier, gone: list[str]) -> None:
    lease = await host.put(A)
    [event] = host.doom(A.digest)
    assert host.acquire(A.digest) is None and host.is_held(A.digest) and not event.is_set()
    twin = await host.put(A)
    lease.release()
    assert event.is_set() and gone == [A.digest]
    twin.release()
    assert host.bytes_of(A.digest) == 100


async def test_shared_lease_holds_a_doomed_copy(host: HostTier) -> None:
    lease = await host.put(A)
    host.doom(A.digest)
    shared = lease.share()
    lease.release()
    assert host.is_held(A.digest)
    shared.release()
    assert host.used_bytes == 0


async def test_random_use_keeps_the_books_balanced(metrics: Metrics) -> None:
    rng, host = random.Random(3), HostTier(500, metrics, lambda digest: None)
    adapters = [make_adapter(f"h{i}", size_bytes=rng.randrange(20, 300)) for i in range(12)]

    async def user() -> None:
        adapter = rng.choice(adapters)
        lease = host.acquire(adapter.digest) or await host.put(adapter)
        with lease:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
                assert lease.adapter is not None and host.is_held(lease.adapter.digest)
            if rng.random() < 0.1:
                host.doom(adapter.digest)
        host.check_integrity()

    tasks = [asyncio.create_task(user()) for _ in range(400)]
    for task in rng.sample(tasks, 40):
        await asyncio.sleep(0)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [error for error in results if isinstance(error, Exception)]
    for adapter in adapters:
        host.doom(adapter.digest)
    assert host.used_bytes == 0
