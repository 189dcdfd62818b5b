"""Several servers over one folder: what moves a name in one of them moves it in all."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from make_adapters import HEADS, make_adapter

from adapters_cache import following, orders
from adapters_cache.adapters import Adapters
from adapters_cache.orders import FILE, LOCK, Order, OrderLog
from adapters_cache.residency import Residency
from adapters_cache.sources import FolderSource
from adapters_cache.version_files import VERSIONS, VersionFiles
from adapters_cache.watch import News
from server.config import CacheConfig
from server.core import Adapter, BaseInfo, Tier
from server.errors import AdapterChanged, AdapterdError, InvalidInput, Unavailable
from server.folders import PUBLISH_LOCK, folder_beside, put_in_place
from server.metrics import Metrics

A, B, C = (letter * 64 for letter in "abc")
Start = Callable[..., Awaitable[Adapters]]


class Slots:
    def slot_bytes(self, adapter: Adapter) -> int:
        return adapter.size_bytes

    def free(self, slot: int) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapters").mkdir()
    return tmp_path / "adapters"


@pytest.fixture
async def start(folder: Path, tmp_path: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start a replica with a disk of its own, after the one of that name has stopped."""
    monkeypatch.setattr(following, "FOLLOW_S", 0.02)
    running: dict[str, Adapters] = {}

    async def stop(name: str) -> None:
        adapters = running.pop(name)
        await adapters.stop()
        adapters.check_integrity()

    async def start(name: str, **changes: Any) -> Adapters:
        if name in running:
            await stop(name)
        config = CacheConfig((folder,), **{"disk_path": str(tmp_path / name), "watch_s": 0.0, **changes})
        metrics = Metrics()
        residency = Residency(Slots(), 1 << 20, metrics)
        adapters = Adapters(config, base, torch.float32, residency, metrics, has_replicas=True, shared=folder)
        await adapters.start()
        running[name] = adapters
        return adapters

    yield start
    for name in list(running):
        await stop(name)


@pytest.fixture
def publish(folder: Path, base: BaseInfo) -> Callable[..., Awaitable[str]]:
    """Put a version in place and load it, as Publish does; gives the digest that is new."""

    async def publish(adapters: Adapters, seed: int, percent: int = 100) -> str:
        VersionFiles(folder).keep("reviews")
        with folder_beside(folder / "reviews") as aside:
            make_adapter(aside, base, seed=seed, head=HEADS[1], name="reviews")
            was_there = put_in_place(aside, folder / "reviews")
            try:
                await adapters.load("reviews", percent)
            except AdapterdError:
                assert was_there
                put_in_place(aside, folder / "reviews")
                raise
        record = adapters._registry.get("reviews")
        return record.digest if percent == 100 else next(iter(record.shares))

    return publish


async def ask(adapters: Adapters, key: str = "") -> str:
    with await adapters.ready("reviews", key) as lease:
        assert lease.adapter is not None
        return lease.adapter.digest


async def shares_of(adapters: Adapters, number: int = 300) -> Counter[str]:
    return Counter([await ask(adapters, f"user{i}") for i in range(number)])


def state(adapters: Adapters) -> tuple[Any, ...]:
    record = adapters._registry.find("reviews")
    return (record.digest, dict(record.shares), record.history) if record is not None else ()


async def same(*replicas: Adapters) -> tuple[Any, ...]:
    """Wait until all have the name alike."""
    async with asyncio.timeout(10):
        while len(states := {repr(state(adapters)) for adapters in replicas}) > 1 or states == {"()"}:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # a look later they still do
    assert len({repr(state(adapters)) for adapters in replicas}) == 1
    return state(replicas[0])


async def test_a_version_reaches_a_replica_before_it_moves_the_name(start: Start, publish: Any) -> None:
    a, b = await start("a"), await start("b")
    old = await publish(a, 1)
    await same(a, b)
    assert await ask(b) == old
    reads = b._origin._read
    is_moved: list[bool] = []

    def reading(*args: Any) -> Any:
        is_moved.append(b._registry.get("reviews").digest != old)
        return reads(*args)

    b._origin._read = reading  # type: ignore[method-assign, assignment]
    new = await publish(a, 2)
    assert await same(a, b) == (new, {}, (old,))
    assert is_moved == [False] and b.get("reviews").tier is Tier.HOST and await ask(b) == new
    assert len(is_moved) == 1


async def test_a_name_that_is_not_loaded_moves_without_a_load(start: Start, publish: Any) -> None:
    a, b = await start("a"), await start("b")
    digest = await publish(a, 1)
    await same(a, b)
    assert b.get("reviews").tier is Tier.ORIGIN and b.get("reviews").manifest is None
    assert await ask(b) == digest and b.get("reviews").labels


async def test_a_share_is_the_same_everywhere_also_on_an_empty_disk(start: Start, publish: Any, tmp_path: Path) -> None:
    a, b = await start("a"), await start("b")
    old = await publish(a, 1)
    new = await publish(a, 2, percent=10)
    await same(a, b)
    seen = await shares_of(b)
    assert set(seen) == {old, new} and 10 < seen[new] < 60 and seen == await shares_of(a)
    c = await start("c")
    assert state(c) == state(a) and await shares_of(c) == seen
    a = await start("a", disk_path=str(tmp_path / "empty"))
    assert state(a) == state(c) and await shares_of(a) == seen


async def test_versions_are_promoted_and_gone_back_to_where_they_never_were(
    start: Start, publish: Any, folder: Path
) -> None:
    a, b, c = [await start(name) for name in "abc"]
    first = await publish(a, 1)
    second = await publish(a, 2, percent=10)
    await same(a, b, c)
    await b.set_traffic("reviews", {second: 100})
    assert await same(a, b, c) == (second, {}, (first,))
    assert await ask(c) == second
    await c.set_traffic("reviews", {first[:8]: 100})
    assert await same(a, b, c) == (first, {}, (second,))
    assert {await ask(adapters) for adapters in (a, b, c)} == {first}
    assert len(list((folder / VERSIONS / "reviews").iterdir())) == 2
    third = await publish(b, 3)
    fourth = await publish(a, 4)
    assert await same(a, b, c) == (fourth, {}, (third, first))
    assert len(list((folder / VERSIONS / "reviews").iterdir())) == 3


async def test_a_published_version_of_a_cold_name_leaves_it_where_it_was_taken_back_to(
    start: Start, publish: Any
) -> None:
    a, b = await start("a"), await start("b")
    first, _ = await publish(a, 1), await publish(a, 2)
    await a.set_traffic("reviews", {first: 100})
    await same(a, b)
    third = await publish(b, 3, percent=10)
    digest, shares, _ = await same(a, b)
    assert (digest, shares) == (first, {third: 10})


async def test_an_unloaded_name_is_read_again_everywhere(start: Start, publish: Any, folder: Path) -> None:
    a, b = await start("a"), await start("b")
    old, new = await publish(a, 1), await publish(a, 2)
    await a.set_traffic("reviews", {old: 100})
    await same(a, b)
    assert await ask(b) == old
    await a.unload("reviews")
    assert await same(a, b) == ("", {}, ())
    assert b.get("reviews").host_bytes == 0 and not (folder / VERSIONS / "reviews").exists()
    assert await ask(b) == new == await ask(a)
    assert state(await start("a")) == ("", {}, ())


async def test_two_that_divide_at_once_end_alike(start: Start, publish: Any) -> None:
    a, b = await start("a"), await start("b")
    old = await publish(a, 1)
    new = await publish(a, 2, percent=10)
    await same(a, b)
    for percent in range(20, 30):
        asked = (a.set_traffic("reviews", {new: percent}), b.set_traffic("reviews", {new: percent + 50}))
        await asyncio.gather(*asked)
        digest, shares, _ = await same(a, b)
        assert {digest, *shares} == {old, new} and list(shares.values())[0] in (percent, percent + 50)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_asked_of_any_replica_all_end_alike(start: Start, publish: Any, seed: int) -> None:
    replicas = [await start(name) for name in "abc"]
    chance, publishing, is_over = random.Random(seed), asyncio.Lock(), False
    await publish(replicas[0], 0)

    async def move(number: int) -> None:
        adapters = chance.choice(replicas)
        versions = [status.digest for status in adapters.get("reviews").versions if status.digest]
        match chance.randrange(8):
            case 0 | 1 | 2:
                async with publishing:  # as the lock of the folder has it
                    percent = chance.choice((10, 100)) if adapters.get("reviews").manifest else 100
                    await publish(adapters, 1 + number, percent)
            case 3:
                await adapters.unload("reviews")
            case _ if versions:
                await adapters.set_traffic("reviews", {chance.choice(versions): chance.choice((0, 30, 100))})

    async def keep_asking(adapters: Adapters) -> None:
        while not is_over:
            await ask(adapters, str(chance.random()))
            await asyncio.sleep(0.005)

    await same(*replicas)
    askers = [asyncio.create_task(keep_asking(adapters)) for adapters in replicas]
    for number in range(0, 24, 3):
        for outcome in await asyncio.gather(*map(move, range(number, number + 3)), return_exceptions=True):
            assert outcome is None or isinstance(outcome, InvalidInput | Unavailable | AdapterChanged), outcome
    is_over = True
    await asyncio.gather(*askers)  # none of them failed
    await chance.choice(replicas).load("reviews")  # a name that was unloaded each has read by itself
    await same(*replicas)


async def test_an_order_that_cannot_be_written_leaves_the_name(start: Start, publish: Any, folder: Path) -> None:
    a, b = await start("a"), await start("b")
    old = await publish(a, 1)
    new = await publish(a, 2)
    before = await same(a, b)
    (folder / LOCK).unlink()
    (folder / LOCK).mkdir()  # as a folder that may not be written into, for a user who may write everywhere
    with pytest.raises(Unavailable, match="cannot be written to publish_folder"):
        await a.set_traffic("reviews", {old: 100})
    with pytest.raises(Unavailable, match="is where it was"):
        await a.unload("reviews")
    with pytest.raises(Unavailable, match="see that there is room"):
        await publish(a, 3)
    assert state(a) == before == state(b) and await ask(a) == new == await ask(b)
    (folder / LOCK).rmdir()
    await a.set_traffic("reviews", {old: 100})
    assert (await same(a, b))[0] == old


async def test_a_folder_that_is_replaced_by_hand_is_ordered_once(
    start: Start, publish: Any, folder: Path, base: BaseInfo
) -> None:
    a, b = [await start(name, watch_s=0.05) for name in "ab"]
    old = await publish(a, 1)
    await same(a, b)
    assert await ask(a) == await ask(b)
    with folder_beside(folder / "reviews") as aside:
        make_adapter(aside, base, seed=7, head=HEADS[1], name="reviews")
        put_in_place(aside, folder / "reviews")
    async with asyncio.timeout(20):
        while state(a)[0] == old or state(b)[0] == old:
            await asyncio.sleep(0.02)
    digest, shares, history = await same(a, b)
    assert digest != old and not shares and history == (old,)
    await asyncio.sleep(0.3)  # some looks later
    assert len((folder / FILE).read_text().splitlines()) == 1 + 2
    assert await ask(b) == digest
    await b.set_traffic("reviews", {old: 100})
    assert (await same(a, b))[0] == old


async def test_a_folder_that_was_replaced_while_a_replica_was_away_counts_there(
    start: Start, publish: Any, folder: Path, base: BaseInfo
) -> None:
    a = await start("a")
    old = await publish(a, 1)
    with folder_beside(folder / "reviews") as aside:
        make_adapter(aside, base, seed=7, head=HEADS[1], name="reviews")
        put_in_place(aside, folder / "reviews")
    c = await start("c")
    await all_move_from(old, a, c)
    assert await ask(a) == await ask(c) != old


async def all_move_from(digest: str, *replicas: Adapters) -> None:
    async with asyncio.timeout(20):
        while any(adapters._registry.get("reviews").digest == digest for adapters in replicas):
            await asyncio.sleep(0.02)
    await same(*replicas)


async def test_an_order_between_another_ones_files_and_its_line_removes_no_files(start: Start, publish: Any) -> None:
    a, b = await start("a"), await start("b")
    first, second = await publish(a, 1), await publish(a, 2)
    await same(a, b)
    assert b._following is not None
    keeps, loop, moves = b._following._shared._versions.keep, asyncio.get_running_loop(), []

    def keeping(name: str, stamp: str = "") -> bool:
        is_kept = keeps(name, stamp)
        if not moves:
            moves.append(asyncio.run_coroutine_threadsafe(a.set_traffic("reviews", {first: 100}), loop))
            with suppress(TimeoutError):
                moves[0].result(0.5)  # longer than it takes, if it does not wait
        return is_kept

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(b._following._shared._versions, "keep", keeping)
        third = await publish(b, 3)
        await asyncio.wrap_future(moves[0])
    c = await start("c")
    digest, shares, history = await same(a, b, c)
    assert {digest, *history} == {first, second, third} and not shares
    assert {await ask(adapters) for adapters in (a, b, c)} == {digest}


async def test_a_name_that_moved_meanwhile_moves_on_from_there(start: Start, publish: Any, folder: Path) -> None:
    a, b = await start("a"), await start("b")
    first, second = await publish(a, 1), await publish(a, 2)
    await same(a, b)
    reads, moved = b._origin._read, asyncio.Event()
    loop = asyncio.get_running_loop()

    def reading(*args: Any) -> Any:
        if not moved.is_set():  # as soon as b has begun
            moved.set()
            asyncio.run_coroutine_threadsafe(a.set_traffic("reviews", {first: 70}), loop).result(10)
        return reads(*args)

    b._origin._read = reading  # type: ignore[method-assign, assignment]
    third = await publish(b, 3)
    assert await same(a, b) == (third, {first: 70}, (second,))  # neither of them was lost
    assert OrderLog(folder).read()["reviews"].stamp == FolderSource(folder / "reviews").stamp()


async def test_a_name_that_keeps_moving_stays_where_others_have_it(start: Start, publish: Any, folder: Path) -> None:
    a, b = await start("a"), await start("b")
    first, second = await publish(a, 1), await publish(a, 2)
    await same(a, b)
    reads, loop = b._origin._read, asyncio.get_running_loop()
    percents = iter((70, 60))

    def reading(*args: Any) -> Any:
        moving = a.set_traffic("reviews", {first: next(percents)})
        asyncio.run_coroutine_threadsafe(moving, loop).result(10)
        return reads(*args)

    b._origin._read = reading  # type: ignore[method-assign, assignment]
    with pytest.raises(Unavailable, match="moved meanwhile at another replica"):
        await publish(b, 3)
    digest, shares, _ = await same(a, b)
    assert (digest, shares) == (second, {first: 60})
    assert OrderLog(folder).read()["reviews"].stamp == FolderSource(folder / "reviews").stamp()


def replace_without_an_order(folder: Path, base: BaseInfo, seed: int) -> None:
    """As a publish that is killed before it is ordered."""
    VersionFiles(folder).keep("reviews")
    with folder_beside(folder / "reviews") as aside:
        make_adapter(aside, base, seed=seed, head=HEADS[1], name="reviews")
        put_in_place(aside, folder / "reviews")


async def test_a_publish_that_was_killed_before_its_order_is_taken_over_by_all(
    start: Start, publish: Any, folder: Path, base: BaseInfo
) -> None:
    a, b = await start("a"), await start("b")
    old = await publish(a, 1)
    await same(a, b)
    replace_without_an_order(folder, base, 2)
    a = await start("a")
    await all_move_from(old, a, b)
    assert await ask(a) == await ask(b) != old
    assert OrderLog(folder).read()["reviews"].stamp == FolderSource(folder / "reviews").stamp()


async def test_a_replica_that_starts_during_a_publish_serves_what_is_ordered(
    start: Start, publish: Any, folder: Path
) -> None:
    a = await start("a")
    old = await publish(a, 1)
    loads, started = a.load, []

    async def loading(*args: Any) -> Any:
        with (folder / PUBLISH_LOCK).open("a") as lock:  # which the publisher has
            fcntl.flock(lock, fcntl.LOCK_EX)
            started.append(await start("c"))
            await asyncio.sleep(0.2)
            assert await ask(started[0]) == old and state(started[0]) == state(a)
            return await loads(*args)

    a.load = loading  # type: ignore[method-assign]
    new = await publish(a, 2, percent=10)
    assert await same(a, *started) == (old, {new: 10}, ())
    await asyncio.sleep(0.3)  # it has looked at the folder by now
    assert state(started[0]) == (old, {new: 10}, ()) == state(a)
    assert len((folder / FILE).read_text().splitlines()) == 1 + 2


async def test_files_that_were_restored_with_other_times_are_ordered_anew(
    start: Start, publish: Any, folder: Path, tmp_path: Path
) -> None:
    a = await start("a")
    old, new = await publish(a, 1), await publish(a, 2)
    await a.set_traffic("reviews", {old: 100})
    for path in [*folder.glob("reviews/*"), *(folder / VERSIONS).glob("*/*/*")]:
        os.utime(path, ns=(0, 0))
    a, b = [await start(name, disk_path=str(tmp_path / "new" / name)) for name in "ab"]
    async with asyncio.timeout(20):
        while OrderLog(folder).read()["reviews"].digest != new:  # the version that was gone back to is not there
            await asyncio.sleep(0.02)
    assert (await same(a, b))[0] == new == await ask(a) == await ask(b)


async def test_what_is_deleted_by_hand_takes_its_versions_along(start: Start, publish: Any, folder: Path) -> None:
    a, b = await start("a"), await start("b")
    await publish(a, 1)
    await same(a, b)
    shutil.rmtree(folder / "reviews")
    gone = News(str(folder), {}, ["reviews"], False)
    await asyncio.gather(a.refresh(gone), b.refresh(gone))
    assert state(a) == () == state(b) and not (folder / VERSIONS / "reviews").exists()
    assert OrderLog(folder).read() == {"reviews": Order("reviews")}
    await publish(b, 2)
    await same(a, b)


async def test_files_of_a_version_that_were_written_into_are_no_version(
    start: Start, publish: Any, folder: Path
) -> None:
    a, b = await start("a"), await start("b")
    old = await publish(a, 1)
    await publish(a, 2)
    await same(a, b)
    for path in (folder / VERSIONS / "reviews").glob("*/adapter.safetensors"):
        os.utime(path, ns=(0, 0))
    with pytest.raises(AdapterChanged, match="no version"):
        await b.set_traffic("reviews", {old: 100})
    with pytest.raises(InvalidInput, match="publish it again"):  # it has the version, and nobody else can have it
        await a.set_traffic("reviews", {old: 100})


async def test_versions_need_a_folder_that_all_have(folder: Path, base: BaseInfo, tmp_path: Path) -> None:
    make_adapter(folder / "reviews", base, head=HEADS[1])
    metrics = Metrics()
    config = CacheConfig((folder,), disk_path=str(tmp_path / "disk"), watch_s=0.0)
    residency = Residency(Slots(), 1 << 20, metrics)
    adapters = Adapters(config, base, torch.float32, residency, metrics, has_replicas=True)
    await adapters.start()
    digest = await ask(adapters)
    with pytest.raises(InvalidInput, match=r"api\.publish_folder=FOLDER"):
        await adapters.set_traffic("reviews", {digest: 100})
    await adapters.stop()


def append(log: OrderLog, order: Order) -> None:
    with log.alone():
        log.append(order)


class TestLog:
    @pytest.fixture
    def logs(self, tmp_path: Path) -> tuple[OrderLog, OrderLog]:
        return OrderLog(tmp_path), OrderLog(tmp_path)

    def test_what_was_added_is_read_once(self, logs: tuple[OrderLog, OrderLog]) -> None:
        a, b = logs
        assert a.read() == {}
        first = Order("x", A, {B: 10}, (C,), {A: "1", B: "2"}, "2")
        append(a, first)
        assert b.read() == {"x": first} and b.read() == {} == a.read()
        append(b, Order("y", B))
        append(a, Order("z"))
        assert a.read() == {"y": Order("y", B)} and a.read() == {}
        assert b.read() == {"z": Order("z")} and a.last == b.last

    def test_of_two_orders_the_last_one_counts(self, logs: tuple[OrderLog, OrderLog]) -> None:
        a, b = logs
        append(a, Order("x", A))
        append(b, Order("x", B))
        assert b.read() == {} and a.read() == {"x": Order("x", B)} and a.last == b.last

    @pytest.mark.parametrize("torn", [b'{"name":"x","dig', b'{"name":"../x","unloaded":true}\n', b"[]\n", b"\xff\n"])
    def test_a_torn_or_foreign_line_is_left_out(
        self, logs: tuple[OrderLog, OrderLog], tmp_path: Path, torn: bytes
    ) -> None:
        a, b = logs
        append(a, Order("x", A))
        with (tmp_path / FILE).open("ab") as file:
            file.write(torn)
        assert b.read() == {"x": Order("x", A)} and b.read() == {}
        append(a, Order("x", B))
        assert b.read() == {"x": Order("x", B)}

    def test_a_last_line_that_is_not_whole_waits(self, logs: tuple[OrderLog, OrderLog], tmp_path: Path) -> None:
        a, b = logs
        append(a, Order("x", A))
        content = (tmp_path / FILE).read_bytes()
        for end in range(len(content)):
            (tmp_path / FILE).write_bytes(content[:end])
            assert b.read() == {}
        (tmp_path / FILE).write_bytes(content)
        assert b.read() == {"x": Order("x", A)}

    def test_what_cannot_be_synced_is_not_there(
        self, logs: tuple[OrderLog, OrderLog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = logs
        append(a, Order("x", A))

        def full(descriptor: int) -> None:
            b.read()  # somebody looks at the wrong moment
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                append(a, Order("x", B))
        assert b.last == {"x": Order("x", B)}
        assert b.read() == {"x": Order("x", A)} and a.last == b.last

    def test_an_order_that_cannot_be_written_hides_no_other_one(
        self, logs: tuple[OrderLog, OrderLog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = logs
        append(b, Order("y", B))

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                append(a, Order("x", B))
        assert a.read() == {"y": Order("y", B)}

    def test_a_long_log_is_made_short_and_read_on(
        self, logs: tuple[OrderLog, OrderLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(orders, "COMPACT_BYTES", 2000)
        a, b = logs
        (tmp_path / "kept").mkdir()
        for name in ("gone", "kept"):
            append(a, Order(name, A))
            append(a, Order(name))
        for number in range(100):
            append(a if number % 3 else b, Order("x", A if number % 2 else B, stamp=f"{number:x}"))
            if number % 7 == 0:
                b.read()
        assert (tmp_path / FILE).stat().st_size < 4000
        c = OrderLog(tmp_path)
        assert c.read() == {"kept": Order("kept"), "x": Order("x", A, stamp="63")}
        a.read()
        b.read()
        assert a.last["x"] == b.last["x"] == c.last["x"]
        assert {path.name for path in tmp_path.iterdir()} == {"kept", FILE, LOCK}
