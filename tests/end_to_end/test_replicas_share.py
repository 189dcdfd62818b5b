"""Replicas over one folder: what is published, divided, taken back or unloaded at one of them is so at all."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from make_adapters import make_adapter

from adapterd import AsyncClient, Error
from adapterd.v1 import adapters_pb2 as v1
from adapters_cache.following import FOLLOW_S
from adapters_cache.orders import LOCK
from server.app import App
from server.config import ServerConfig
from server.core import BaseInfo

HEAD = {"head_type": "classification", "num_labels": 3}
SLACK_S = 3.0  # for a load, on a busy machine
FRONTS = pytest.mark.parametrize("frontends", [0, 1], ids=["alone", "fronts"])


@dataclass
class Replica:
    app: App
    client: AsyncClient


Start = Callable[..., Awaitable[Replica]]


@pytest.fixture
async def start(config: ServerConfig, adapters_path: Path, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a replica, each with a disk of its own that is empty."""
    (tmp_path / "replicas").write_text("")
    number = 0
    async with AsyncExitStack() as running:

        async def start(frontends: int = 0) -> Replica:
            nonlocal number
            number += 1
            shared = {"publish_folder": str(adapters_path), "replicas": f"file:{tmp_path / 'replicas'}"}
            own = replace(
                config,
                cache=replace(config.cache, disk_path=str(tmp_path / f"disk{number}"), watch_s=0.0),
                api=replace(config.api, frontends=frontends, **shared),
            )
            app = App(own)
            await app.start()
            running.push_async_callback(app.stop)
            client = AsyncClient(f"127.0.0.1:{app.grpc_port}", max_retries=0)
            await running.enter_async_context(client)
            return Replica(app, client)

        yield start


@pytest.fixture
def made(tmp_path: Path, base_info: BaseInfo) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        folder = tmp_path / f"version{seed}" / "reviews"
        make_adapter(folder, base_info, config="seq_bn[reduction_factor=4]", head=HEAD, seed=seed)
        return folder

    return make


async def digest_of(replica: Replica, key: str = "") -> str:
    return (await replica.client.predict("reviews", "a b c", sticky_key=key)).digest


async def shares_at(replica: Replica, number: int = 200) -> Counter[str]:
    return Counter(await asyncio.gather(*(digest_of(replica, f"user{i}") for i in range(number))))


async def until(is_so: Callable[[], Awaitable[bool]]) -> float:
    """Seconds that it took, which are within the bound."""
    started = time.monotonic()
    async with asyncio.timeout(20):
        while not await is_so():
            await asyncio.sleep(0.02)
    took_s = time.monotonic() - started
    assert took_s < FOLLOW_S + SLACK_S
    return took_s


async def test_a_publish_under_load_reaches_all_within_the_bound(start: Start, made: Callable[[int], Path]) -> None:
    replicas = [await start() for _ in range(3)]
    digests = [(await replicas[0].client.publish(made(1))).adapter.digest]
    for replica in replicas:
        await until(lambda replica=replica: _answers(replica, digests[0]))
    seen: list[tuple[float, int, str]] = []
    is_over = False

    async def ask(number: int) -> None:
        while not is_over:
            digest = await digest_of(replicas[number])
            seen.append((time.monotonic(), number, digest))

    askers = [asyncio.create_task(ask(number)) for number in range(3) for _ in range(2)]
    took_s = []
    for seed in range(2, 6):
        old = digests[-1]
        digests.append((await replicas[seed % 3].client.publish(made(seed))).adapter.digest)
        published_at = time.monotonic()
        await until(lambda: _all_answer(replicas, digests[-1]))
        await asyncio.sleep(FOLLOW_S)
        took_s.append(max(at for at, _, digest in seen if digest == old) - published_at)
    is_over = True
    await asyncio.gather(*askers)  # none of them failed
    print("seconds from the reply to Publish to the last old answer:", [round(each, 3) for each in took_s])
    assert max(took_s) < FOLLOW_S + SLACK_S
    for number in range(3):
        order = [digests.index(digest) for _, asked, digest in seen if asked == number]
        assert set(order) == set(range(5))
    assert {digest for _, _, digest in seen} == set(digests)


async def _answers(replica: Replica, digest: str) -> bool:
    try:
        return await digest_of(replica) == digest
    except Error:
        return False


async def _all_answer(replicas: list[Replica], digest: str) -> bool:
    return all([await _answers(replica, digest) for replica in replicas])


@FRONTS
async def test_a_rollout_is_one_for_all(start: Start, made: Callable[[int], Path], frontends: int) -> None:
    first, second = await start(frontends), await start(frontends)
    old = (await first.client.publish(made(1))).adapter.digest
    await until(lambda: _answers(second, old))
    versions = (await first.client.publish(made(2), percent=10)).adapter.versions
    assert [version.percent for version in versions] == [90, 10]
    new = versions[1].digest

    async def is_shared(replica: Replica) -> bool:
        return [version.percent for version in (await replica.client.get("reviews")).versions] == [90, 10]

    await until(lambda: is_shared(second))
    late = await start()  # it has never had the old one, nor anything on its disk
    seen = [await shares_at(replica) for replica in (first, second, late)]
    assert seen[0] == seen[1] == seen[2] and set(seen[0]) == {old, new} and 8 < seen[0][new] < 40

    await second.client.set_traffic("reviews", {new: 100})
    await until(lambda: _all_answer([first, second, late], new))
    later = await start()
    await later.client.set_traffic("reviews", {old: 100})
    await until(lambda: _all_answer([first, second, late, later], old))

    await first.client.unload("reviews")

    async def is_gone(replica: Replica) -> bool:
        return (await replica.client.get("reviews")).tier == v1.TIER_ORIGIN

    for replica in (second, late, later):
        await until(lambda replica=replica: is_gone(replica))
    assert {await digest_of(replica) for replica in (first, second, late, later)} == {new}  # what the folder holds


async def test_a_publish_that_cannot_be_ordered_leaves_everything(
    start: Start, made: Callable[[int], Path], adapters_path: Path
) -> None:
    first, second = await start(), await start()
    old = (await first.client.publish(made(1))).adapter.digest
    await until(lambda: _answers(second, old))
    files = {path.name: path.read_bytes() for path in (adapters_path / "reviews").iterdir()}
    (adapters_path / LOCK).unlink()
    (adapters_path / LOCK).mkdir()
    with pytest.raises(Error, match="cannot be written to publish_folder"):
        await first.client.publish(made(2))
    assert {path.name: path.read_bytes() for path in (adapters_path / "reviews").iterdir()} == files
    assert await digest_of(first) == old == await digest_of(second)


async def test_orders_are_counted(start: Start, made: Callable[[int], Path]) -> None:
    first, second = await start(), await start()
    digest = (await first.client.publish(made(1))).adapter.digest
    await until(lambda: _answers(second, digest))
    assert 'adapterd_orders_total{outcome="written"} 1.0' in first.app.metrics.render().decode()
    assert 'adapterd_orders_total{outcome="followed"} 1.0' in second.app.metrics.render().decode()
    assert 'adapterd_orders_total{outcome="failed"} 0.0' in second.app.metrics.render().decode()
