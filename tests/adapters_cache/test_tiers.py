"""The tiers together: restarts, versions, what changes at the origin, prefetch, and what nobody uses."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_adapters import HEADS, make_adapter

from adapters_cache import origin
from adapters_cache.adapters import Adapters
from adapters_cache.formats import adapterhub
from adapters_cache.residency import Residency
from adapters_cache.sharing.artefact import describe
from adapters_cache.sharing.folder import FolderRegistry
from adapters_cache.watch import News
from server.config import CacheConfig
from server.core import Adapter, BaseInfo, Tier, Wanted
from server.errors import AdapterNotFound, InvalidInput, MalformedCheckpoint, Overloaded, Unavailable
from server.folders import folder_beside, put_in_place
from server.metrics import Metrics

Start = Callable[..., Awaitable[Adapters]]
TAGS = {"head_type": "tagging", "num_labels": 3}


class Slots:
    def slot_bytes(self, adapter: Adapter) -> int:
        return adapter.size_bytes

    def free(self, slot: int) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, base: BaseInfo) -> Path:
    for seed, name in enumerate(("a", "b", "c")):
        make_adapter(tmp_path / "adapters" / name, base, seed=seed, head=HEADS[seed])
    return tmp_path / "adapters"


@pytest.fixture
async def start(folder: Path, tmp_path: Path, base: BaseInfo) -> AsyncIterator[Start]:
    """Start the tiers, after those that were started before have stopped."""
    running: list[Adapters] = []

    async def stop() -> None:
        for adapters in running:
            adapters.check_integrity()
            await adapters.stop()
        running.clear()

    async def start(**changes: Any) -> Adapters:
        await stop()
        options = {"adapters": (folder,), "disk_path": str(tmp_path / "disk"), "watch_s": 0.0, **changes}
        metrics = Metrics()
        residency = Residency(Slots(), 1 << 20, metrics)
        adapters = Adapters(CacheConfig(**options), base, torch.float32, residency, metrics)
        await adapters.start()
        running.append(adapters)
        return adapters

    yield start
    await stop()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names whose origin was read."""
    names: list[str] = []
    read = origin.read_checkpoint

    def counted(path: Path, **options: Any) -> Any:
        names.append(options["name"])
        return read(path, **options)

    monkeypatch.setattr(origin, "read_checkpoint", counted)
    return names


async def digest_of(adapters: Adapters, name: str, key: str = "") -> str:
    with await adapters.ready(name, key) as lease:
        assert lease.adapter is not None and lease.adapter.manifest.name == name
        return lease.adapter.digest


def replace_whole(path: Path, base: BaseInfo, seed: int, head: Any = HEADS[0]) -> None:
    """As `push`, `pull` and `Publish` do."""
    with folder_beside(path) as aside:
        make_adapter(aside, base, seed=seed, head=head, name=path.name)
        put_in_place(aside, path)


async def test_a_restart_reads_no_origin(start: Start, reads: list[str]) -> None:
    adapters = await start()
    before = await digest_of(adapters, "a")
    assert adapters.get("a").disk_bytes > 0 and reads == ["a"]
    told = adapters.get("a")
    adapters = await start()
    status = adapters.get("a")
    assert (status.tier, status.manifest, status.task, status.labels) == (
        Tier.DISK,
        told.manifest,
        told.task,
        told.labels,
    )
    assert await digest_of(adapters, "a") == before and reads == ["a"]
    assert adapters.get("b").tier is Tier.ORIGIN and adapters.get("b").manifest is None


async def test_what_changed_while_nobody_ran_is_read_again(start: Start, folder: Path, base: BaseInfo) -> None:
    before = await digest_of(await start(), "a")
    replace_whole(folder / "a", base, 7)
    adapters = await start()
    after = await digest_of(adapters, "a")
    assert after != before and [version.digest for version in adapters.get("a").versions] == [after, before]


async def test_a_name_keeps_its_digest_from_disk_when_its_folder_changes(
    start: Start, folder: Path, base: BaseInfo
) -> None:
    adapters = await start()
    before = await digest_of(adapters, "a")
    replace_whole(folder / "a", base, 7)
    adapters._host.doom(before)
    assert await digest_of(adapters, "a") == before
    status, previous = await adapters.load("a")
    assert previous == before and status.manifest is not None and status.manifest.digest != before


async def test_a_damaged_copy_is_made_again(start: Start, reads: list[str], tmp_path: Path) -> None:
    adapters = await start()
    before = await digest_of(adapters, "a")
    adapters._host.doom(before)
    [path] = (tmp_path / "disk" / "converted").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert await digest_of(adapters, "a") == before and reads == ["a", "a"]
    assert adapters.get("a").disk_bytes > 0


async def test_unload_gives_back_the_disk_too(start: Start, tmp_path: Path, reads: list[str]) -> None:
    adapters = await start()
    await digest_of(adapters, "a")
    size = adapters.get("a").disk_bytes
    host, _, disk = await adapters.unload("a")
    assert host > 0 and disk == size and not any((tmp_path / "disk" / "converted").iterdir())
    await digest_of(adapters, "a")
    assert reads == ["a", "a"]


async def test_an_index_that_is_broken_is_begun_anew(start: Start, tmp_path: Path, reads: list[str]) -> None:
    before = await digest_of(await start(), "a")
    await start(disk_path="")  # stops the first
    (tmp_path / "disk" / "index.db").write_bytes(b"no database" * 100)
    adapters = await start()
    assert adapters.get("a").manifest is None and await digest_of(adapters, "a") == before


async def test_an_index_of_another_base_says_nothing(start: Start, tmp_path: Path) -> None:
    await digest_of(await start(), "a")
    await start()  # stops the first, which writes what it knows
    with sqlite3.connect(tmp_path / "disk" / "index.db") as database:
        database.execute("update facts set value = 'other' where key = 'base'")
    adapters = await start()
    assert adapters.get("a").manifest is None


class TestVersions:
    async def test_a_new_version_gets_its_share_and_equal_keys_the_same_one(
        self, start: Start, folder: Path, base: BaseInfo
    ) -> None:
        adapters = await start()
        old = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        status, previous = await adapters.load("a", 30)
        assert previous == old and status.manifest is not None and status.manifest.digest == old
        new = status.versions[1].digest
        assert [(v.digest, v.percent) for v in status.versions] == [(old, 70), (new, 30)]
        seen = [await digest_of(adapters, "a", f"user{i}") for i in range(200)]
        assert 35 < seen.count(new) < 85 and seen.count(old) + seen.count(new) == 200
        assert [await digest_of(adapters, "a", f"user{i}") for i in range(200)] == seen

    async def test_shares_outlive_a_restart_and_eviction(
        self, start: Start, folder: Path, base: BaseInfo, reads: list[str]
    ) -> None:
        adapters = await start()
        old = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        new = (await adapters.load("a", 50))[0].versions[1].digest
        seen = [await digest_of(adapters, "a", f"user{i}") for i in range(20)]
        assert set(seen) == {old, new}
        adapters = await start()
        reads.clear()
        assert [await digest_of(adapters, "a", f"user{i}") for i in range(20)] == seen and not reads

    async def test_promote_and_roll_back(self, start: Start, folder: Path, base: BaseInfo) -> None:
        adapters = await start()
        old = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        new = (await adapters.load("a", 10))[0].versions[1].digest
        status = await adapters.set_traffic("a", {new: 100})
        assert [(v.digest, v.percent) for v in status.versions] == [(new, 100), (old, 0)]
        assert status.manifest is not None and status.manifest.digest == new == await digest_of(adapters, "a")
        assert not adapters._host.is_held(old)
        adapters = await start()
        status = await adapters.set_traffic("a", {old[:8]: 100})
        assert await digest_of(adapters, "a") == old and [v.digest for v in status.versions] == [old, new]

    async def test_the_pin_goes_with_what_the_name_points_to(self, start: Start, folder: Path, base: BaseInfo) -> None:
        adapters = await start()
        old, new = await two_versions(adapters, folder, base, 10)
        await adapters.pin("a", True)
        assert adapters._host._books._pinned == {old}
        await adapters.set_traffic("a", {new: 60})
        assert adapters._host._books._pinned == {old}
        await adapters.set_traffic("a", {new: 100})
        assert adapters._host._books._pinned == {new}
        await adapters.unload("a")
        assert adapters._host._books._pinned == set()

    async def test_only_so_many_are_kept(self, start: Start, folder: Path, base: BaseInfo, tmp_path: Path) -> None:
        adapters = await start(kept_versions=1)
        digests = [await digest_of(adapters, "a")]
        for seed in (7, 8):
            replace_whole(folder / "a", base, seed)
            await adapters.load("a")
            digests.append(await digest_of(adapters, "a"))
        assert [v.digest for v in adapters.get("a").versions] == [digests[2], digests[1]]
        assert len(list((tmp_path / "disk" / "converted").iterdir())) == 2
        with pytest.raises(InvalidInput, match="has no version"):
            await adapters.set_traffic("a", {digests[0]: 100})

    async def test_a_version_that_is_gone_leaves_everything_as_it_was(
        self, start: Start, folder: Path, base: BaseInfo
    ) -> None:
        adapters = await start()
        old = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        await adapters.load("a")
        before = adapters.get("a").versions
        assert adapters._disk is not None
        adapters._disk.remove(old)
        with pytest.raises(Exception, match="has no version"):
            await adapters.set_traffic("a", {old: 100})
        assert [v.digest for v in adapters.get("a").versions] == [v.digest for v in before]
        assert await digest_of(adapters, "a") == before[0].digest

    async def test_without_a_disk_tier_there_is_one_version(self, start: Start) -> None:
        adapters = await start(disk_path="")
        await digest_of(adapters, "a")
        with pytest.raises(InvalidInput, match="cache.disk_path"):
            await adapters.load("a", 10)
        assert adapters.get("a").versions == ()

    async def test_versions_under_load_answer_as_one_of_both(self, start: Start, folder: Path, base: BaseInfo) -> None:
        adapters = await start()
        old = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        seen: set[str] = set()
        is_over = False

        async def ask(number: int) -> None:
            while not is_over:
                seen.add(await digest_of(adapters, "a", f"{number}"))
                await asyncio.sleep(0.001)

        askers = [asyncio.create_task(ask(number)) for number in range(20)]
        new = (await adapters.load("a", 50))[0].versions[1].digest
        for percent in (80, 100):
            await adapters.set_traffic("a", {new: percent})
        await adapters.set_traffic("a", {old: 100})
        is_over = True
        await asyncio.gather(*askers)
        assert seen == {old, new}

    async def test_a_division_is_not_undone_by_a_load_that_began_before_it(
        self, start: Start, folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapters = await start()
        old, new = await two_versions(adapters, folder, base, 10)
        adapters._host.doom(old)
        assert adapters._disk is not None
        gate, get = threading.Event(), adapters._disk.get

        def gated(digest: str) -> Adapter | None:
            assert digest != old or gate.wait(30)
            return get(digest)

        monkeypatch.setattr(adapters._disk, "get", gated)
        user = next(f"user{i}" for i in range(99) if adapters._registry.get("a").choose(f"user{i}") == old)
        waiting = asyncio.create_task(digest_of(adapters, "a", user))
        await asyncio.sleep(0.05)
        await adapters.set_traffic("a", {new: 100})
        gate.set()
        assert await waiting == old  # what was asked for then
        assert await digest_of(adapters, "a") == new and adapters.get("a").versions[0].digest == new

    async def test_a_new_version_under_way_answers_nobody_else(
        self, start: Start, folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapters = await start()
        old = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        gate, read = threading.Event(), origin.read_checkpoint

        def gated(path: Path, **options: Any) -> Any:
            assert gate.wait(30)
            return read(path, **options)

        monkeypatch.setattr(origin, "read_checkpoint", gated)
        loading = asyncio.create_task(adapters.load("a", 1))
        await asyncio.sleep(0.05)
        adapters._host.doom(old)
        assert await digest_of(adapters, "a") == old  # from disk, at once
        (folder / "a" / "adapter.safetensors").write_bytes(b"")
        gate.set()
        with pytest.raises(MalformedCheckpoint):
            await loading
        assert await digest_of(adapters, "a") == old and adapters.get("a").versions == ()

    async def test_where_nothing_is_loaded_nothing_can_be_shared(self, start: Start) -> None:
        adapters = await start()
        with pytest.raises(InvalidInput, match="not loaded, so no version can share"):
            await adapters.load("a", 10)
        await digest_of(adapters, "a")
        await adapters.unload("a")
        with pytest.raises(InvalidInput, match="not loaded"):
            await adapters.load("a", 10)

    async def test_a_version_that_would_not_be_kept_is_refused(
        self, start: Start, folder: Path, base: BaseInfo
    ) -> None:
        adapters = await start()
        old = await digest_of(adapters, "a")
        size = adapters.get("a").disk_bytes
        adapters = await start(disk_bytes=size + size // 2)
        replace_whole(folder / "a", base, 7)
        with pytest.raises(Overloaded, match="has no room for another version"):
            await adapters.load("a", 10)
        assert await digest_of(adapters, "a") == old and adapters.get("a").versions == ()

    async def test_a_smaller_disk_keeps_what_answers(self, start: Start, folder: Path, base: BaseInfo) -> None:
        adapters = await start()
        old, new = await two_versions(adapters, folder, base, 50)
        await digest_of(adapters, "b")
        adapters = await start(disk_bytes=adapters.get("a").disk_bytes * 5 // 2)
        assert {await digest_of(adapters, "a", f"user{i}") for i in range(30)} == {old, new}

    async def test_shares_outlive_a_kill_right_after(
        self, start: Start, folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapters = await start()
        old, new = await two_versions(adapters, folder, base, 10)
        assert adapters._index is not None
        adapters._index._dirty.clear()  # what a kill would lose
        adapters = await start()
        assert [(v.digest, v.percent) for v in adapters.get("a").versions] == [(old, 90), (new, 10)]

    async def test_what_cannot_be_written_is_told_and_written_later(
        self, start: Start, folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapters = await start()
        _, new = await two_versions(adapters, folder, base, 10)

        def full(changes: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        assert adapters._index is not None
        with monkeypatch.context() as patch:
            patch.setattr(adapters._index, "_write", full)
            with pytest.raises(Unavailable, match="disk is full"):
                await adapters.set_traffic("a", {new: 40})
        adapters = await start()
        assert adapters.get("a").versions[1].percent == 40

    async def test_pins_and_what_can_be_gone_back_to_outlive_a_replacement(
        self, start: Start, folder: Path, base: BaseInfo
    ) -> None:
        adapters = await start()
        old, new = await two_versions(adapters, folder, base, 10)
        await adapters.pin("a", True)
        replace_whole(folder / "a", base, 8)
        adapters = await start()
        assert adapters.get("a").is_pinned
        newest = await digest_of(adapters, "a")
        assert newest not in (old, new) and {v.digest for v in adapters.get("a").versions} == {newest, old, new}
        assert (await adapters.set_traffic("a", {old: 100})).versions[0].digest == old


async def two_versions(adapters: Adapters, folder: Path, base: BaseInfo, percent: int) -> tuple[str, str]:
    """Of "a": the one before, and a new one beside it."""
    old = await digest_of(adapters, "a")
    replace_whole(folder / "a", base, 7)
    return old, (await adapters.load("a", percent))[0].versions[1].digest


class TestWatch:
    async def test_an_adapter_that_goes_while_it_loads_leaves_nothing(
        self, start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapters = await start()
        gate, read = threading.Event(), origin.read_checkpoint

        def gated(path: Path, **options: Any) -> Any:
            found = read(path, **options)
            assert gate.wait(30)
            return found

        monkeypatch.setattr(origin, "read_checkpoint", gated)
        waiting = asyncio.create_task(adapters.ready("a"))
        await asyncio.sleep(0.1)
        shutil.rmtree(folder / "a")
        leaving = asyncio.create_task(adapters.refresh(News(str(folder), {}, ["a"], False)))
        await asyncio.sleep(0.05)
        gate.set()
        (await waiting).release()  # it was asked for while it was there
        await leaving
        await asyncio.sleep(0)
        assert "a" not in adapters._registry and adapters._host.used_bytes == 0
        assert adapters._disk is not None and adapters._disk.used_bytes == 0

    async def test_files_that_are_written_over_are_noticed_and_after_a_restart_too(
        self, start: Start, folder: Path, base: BaseInfo
    ) -> None:
        adapters = await start(watch_s=0.02)
        digests = [await digest_of(adapters, "a")]
        make_adapter(folder / "a", base, seed=7, head=HEADS[0])
        async with asyncio.timeout(10):
            while await digest_of(adapters, "a") == digests[0]:
                await asyncio.sleep(0.01)
        digests.append(await digest_of(adapters, "a"))
        await start(disk_path="", watch_s=0.0)  # stops the other
        make_adapter(folder / "a", base, seed=8, head=HEADS[0])
        assert await digest_of(await start(), "a") not in digests

    async def test_a_saved_setup_that_appears_is_served(self, start: Start, folder: Path, base: BaseInfo) -> None:
        changes = []
        adapters = await start(watch_s=0.02)

        async def on_change() -> None:
            changes.append(1)

        adapters.on_change = on_change
        (folder / "both").mkdir()
        (folder / "both" / "adapter_setup.json").write_text("{}")
        async with asyncio.timeout(10):
            while not changes:
                await asyncio.sleep(0.01)

    async def test_new_adapters_appear_and_removed_ones_go(self, start: Start, folder: Path, base: BaseInfo) -> None:
        adapters = await start(watch_s=0.02)
        await digest_of(adapters, "b")
        make_adapter(folder / "new", base, seed=9)
        shutil.rmtree(folder / "b")
        async with asyncio.timeout(10):
            while "new" not in adapters._registry or "b" in adapters._registry:
                await asyncio.sleep(0.01)
        await digest_of(adapters, "new")
        with pytest.raises(AdapterNotFound):
            await adapters.ready("b")

    async def test_a_replaced_adapter_is_loaded_once(
        self, start: Start, folder: Path, base: BaseInfo, reads: list[str]
    ) -> None:
        adapters = await start(watch_s=0.02)
        before = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        async with asyncio.timeout(10):
            while await digest_of(adapters, "a") == before:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert reads == ["a", "a"]

    async def test_a_broken_replacement_leaves_what_is_served(self, start: Start, folder: Path, base: BaseInfo) -> None:
        adapters = await start(watch_s=0.02)
        before = await digest_of(adapters, "a")
        with folder_beside(folder / "a") as aside:
            make_adapter(aside, base, seed=7, name="a")
            (aside / "adapter.safetensors").write_bytes(b"")
            put_in_place(aside, folder / "a")
        async with asyncio.timeout(10):
            while not adapters.get("a").error:
                await asyncio.sleep(0.01)
        assert await digest_of(adapters, "a") == before

    async def test_what_was_published_beside_is_not_moved_by_a_look(
        self, start: Start, folder: Path, base: BaseInfo
    ) -> None:
        adapters = await start(watch_s=0.02)
        old = await digest_of(adapters, "a")
        replace_whole(folder / "a", base, 7)
        await adapters.load("a", 10)
        await asyncio.sleep(0.3)
        assert [v.percent for v in adapters.get("a").versions] == [90, 10]
        assert adapters.get("a").versions[0].digest == old


class TestRegistries:
    @pytest.fixture
    def registry(self, tmp_path: Path, base: BaseInfo) -> FolderRegistry:
        make_adapter(tmp_path / "made" / "shared", base, seed=5, head=HEADS[0])
        registry = FolderRegistry(str(tmp_path / "registry"))
        registry.push(tmp_path / "made" / "shared", describe(tmp_path / "made" / "shared", "shared"))
        return registry

    async def test_an_adapter_of_a_registry_is_served_and_kept_on_disk(
        self, start: Start, registry: FolderRegistry, tmp_path: Path, reads: list[str]
    ) -> None:
        adapters = await start(registries=(str(tmp_path / "registry"),))
        digest = await digest_of(adapters, "shared")
        assert reads == ["shared"]
        adapters = await start(registries=(str(tmp_path / "registry"),))
        assert await digest_of(adapters, "shared") == digest and reads == ["shared"]

    async def test_load_takes_what_main_points_to(
        self, start: Start, registry: FolderRegistry, tmp_path: Path, base: BaseInfo
    ) -> None:
        adapters = await start(registries=(str(tmp_path / "registry"),))
        before = await digest_of(adapters, "shared")
        make_adapter(tmp_path / "made" / "shared", base, seed=6, head=HEADS[0])
        registry.push(tmp_path / "made" / "shared", describe(tmp_path / "made" / "shared", "shared"))
        assert await digest_of(adapters, "shared") == before
        status, previous = await adapters.load("shared")
        assert previous == before and status.manifest is not None and status.manifest.digest != before

    async def test_damage_in_a_registry_is_its_adapters_own(
        self, start: Start, registry: FolderRegistry, tmp_path: Path
    ) -> None:
        [weights] = (tmp_path / "registry").rglob("adapter.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1])
        adapters = await start(registries=(str(tmp_path / "registry"),))
        with pytest.raises(MalformedCheckpoint, match="sha256"):
            await adapters.ready("shared")
        await digest_of(adapters, "a")

    async def test_what_is_on_disk_is_served_while_its_registry_is_away(
        self, start: Start, registry: FolderRegistry, tmp_path: Path, reads: list[str]
    ) -> None:
        adapters = await start(registries=(str(tmp_path / "registry"),))
        digest = await digest_of(adapters, "shared")
        await adapters.pin("shared", True)
        (tmp_path / "registry").rename(tmp_path / "away")
        adapters = await start(registries=(str(tmp_path / "registry"),))
        assert await digest_of(adapters, "shared") == digest and adapters.get("shared").is_pinned
        (tmp_path / "away").rename(tmp_path / "registry")
        adapters = await start(registries=(str(tmp_path / "registry"),))
        assert adapters.get("shared").is_pinned and reads == ["shared"]

    async def test_a_registry_that_hangs_does_not_hold_up_the_start(
        self, start: Start, registry: FolderRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        going_on = threading.Event()

        def hang(self: FolderRegistry) -> Any:
            going_on.wait(30)
            return iter(())

        monkeypatch.setattr(FolderRegistry, "search", hang)
        async with asyncio.timeout(5):
            adapters = await start(registries=(str(tmp_path / "registry"),), load_timeout_s=0.3)
        await digest_of(adapters, "a")
        going_on.set()

    async def test_one_broken_entry_leaves_the_others(
        self, start: Start, registry: FolderRegistry, tmp_path: Path, base: BaseInfo
    ) -> None:
        make_adapter(tmp_path / "made" / "other", base, seed=6, head=HEADS[0])
        registry.push(tmp_path / "made" / "other", describe(tmp_path / "made" / "other", "other"))
        [manifest] = (tmp_path / "registry" / "other").rglob("adapterd.json")
        manifest.write_text("{")
        adapters = await start(registries=(str(tmp_path / "registry"),))
        await digest_of(adapters, "shared")
        with pytest.raises(AdapterNotFound):
            await adapters.ready("other")

    async def test_a_folder_counts_before_a_registry(
        self, start: Start, registry: FolderRegistry, tmp_path: Path, base: BaseInfo, folder: Path
    ) -> None:
        adapters = await start(registries=(str(tmp_path / "registry"),), watch_s=0.0)
        own = await digest_of(adapters, "a")
        make_adapter(tmp_path / "made" / "a", base, seed=6, head=HEADS[0])
        registry.push(tmp_path / "made" / "a", describe(tmp_path / "made" / "a", "a"))
        place = str(tmp_path / "registry")
        listing = await adapters._origin.scan(place)
        await adapters.refresh(News(place, listing.adapters, [], False))
        assert await digest_of(adapters, "a") == own
        await adapters.refresh(News(place, {}, ["a"], False))
        assert await digest_of(adapters, "a") == own
        shutil.rmtree(folder / "a")  # now the registry's takes its place
        await adapters.refresh(News(str(folder), {}, ["a"], False))
        assert await digest_of(adapters, "a") != own

    async def test_a_registry_that_is_not_there_costs_nobody_else(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "origins.toml").write_text('["hub:nobody"]\nendpoint = "http://127.0.0.1:9"\n')
        monkeypatch.setenv("ADAPTERD_ORIGINS", str(tmp_path / "origins.toml"))
        adapters = await start(registries=("hub:nobody", str(tmp_path / "empty")))
        await digest_of(adapters, "a")


async def test_prefetched_adapters_are_there_when_they_are_asked_for(start: Start, reads: list[str]) -> None:
    adapters = await start()
    await digest_of(adapters, "a")
    assert adapters.prefetch(["a", "b", "c"]) == 2 and adapters.prefetch(["b", "c"]) == 0
    async with asyncio.timeout(10):
        while not all(adapters.get(name).tier is Tier.HOST for name in "bc"):
            await asyncio.sleep(0.01)
    assert sorted(reads) == ["a", "b", "c"]
    with pytest.raises(AdapterNotFound):
        adapters.prefetch(["a", "nothing"])


async def test_prefetching_many_does_not_keep_others_waiting(
    start: Start, folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        make_adapter(folder / f"many{seed:02}", base, seed=20 + seed, head=HEADS[0])
    read = origin.read_checkpoint

    def slow(path: Path, **options: Any) -> Any:
        time.sleep(0.2)
        return read(path, **options)

    adapters = await start(max_concurrent_loads=2, load_timeout_s=1.0)
    monkeypatch.setattr(origin, "read_checkpoint", slow)
    names = [f"many{seed:02}" for seed in range(12)]
    assert adapters.prefetch(names) == 12
    await digest_of(adapters, "a")
    async with asyncio.timeout(20):
        while not all(adapters.get(name).tier is Tier.HOST for name in names):
            await asyncio.sleep(0.05)
    assert not any(adapters.get(name).error for name in names)


async def test_unload_while_it_loads_leaves_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = await start()
    assert adapters._disk is not None
    gate, put = threading.Event(), adapters._disk.put

    def gated(adapter: Adapter) -> bool:
        assert gate.wait(30)
        return put(adapter)

    monkeypatch.setattr(adapters._disk, "put", gated)
    waiting = asyncio.create_task(adapters.ready("a"))
    await asyncio.sleep(0.1)
    await adapters.unload("a")
    gate.set()
    (await waiting).release()
    await asyncio.sleep(0)
    assert adapters._host.used_bytes == adapters._disk.used_bytes == 0 and adapters.get("a").tier is Tier.ORIGIN


async def test_what_the_configuration_names_and_what_is_pinned_is_loaded_at_start(start: Start) -> None:
    adapters = await start()
    await adapters.pin("c", True)
    adapters = await start(prefetch=("a*",))
    assert adapters.get("c").is_pinned
    async with asyncio.timeout(10):
        while not all(adapters.get(name).tier is Tier.HOST for name in "ac"):
            await asyncio.sleep(0.01)
    assert adapters.get("b").tier is Tier.ORIGIN


async def test_a_pinned_adapter_does_not_grow_beyond_what_may_be_pinned(
    start: Start, folder: Path, base: BaseInfo
) -> None:
    adapters = await start()
    before = await digest_of(adapters, "a")
    largest = adapters.get("a").host_bytes
    adapters = await start(host_bytes=14 * largest)
    await adapters.pin("a", True)
    make_adapter(folder / "a", base, seed=7, head=HEADS[0], config="seq_bn[reduction_factor=1]")
    with pytest.raises(Overloaded, match="with 'a' pinned"):
        await adapters.load("a")
    assert await digest_of(adapters, "a") == before
    await adapters.pin("a", False)
    status, _ = await adapters.load("a")
    assert status.host_bytes > 2 * largest


async def test_what_nobody_asks_for_leaves_memory(start: Start) -> None:
    adapters = await start(idle_ttl_s=0.1)
    await digest_of(adapters, "a")
    await adapters.pin("b", True)
    with await adapters.ready("c"):
        async with asyncio.timeout(10):
            while adapters.get("a").tier is not Tier.DISK:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert adapters.get("b").tier is Tier.HOST and adapters.get("c").tier is Tier.HOST


async def test_a_listing_can_be_of_one_task_or_tier(start: Start) -> None:
    adapters = await start()
    for name in "ab":
        await digest_of(adapters, name)
    task = adapters.get("a").task
    assert [status.name for status in adapters.list(Wanted(task=task))[0]] == [
        name for name in "ab" if adapters.get(name).task == task
    ]
    page, total = adapters.list(Wanted(tier=Tier.HOST), limit=1)
    assert [status.name for status in page] == ["a"] and total == 2
    assert [status.name for status in adapters.list(Wanted(tier=Tier.HOST), after="a")[0]] == ["b"]
    assert [status.name for status in adapters.list(Wanted(tier=Tier.ORIGIN))[0]] == ["c"]


async def test_a_pin_that_grew_while_its_adapter_was_unloaded_is_dropped_and_nobody_is_refused(
    start: Start, folder: Path, base: BaseInfo, tmp_path: Path
) -> None:
    adapters = await start(host_bytes=40_000)
    await adapters.pin("a", True)
    await digest_of(adapters, "b")
    size = adapters.get("a").host_bytes
    await adapters.unload("a")
    make_adapter(folder / "a", base, config="seq_bn[reduction_factor=1]", head=HEADS[0])
    await digest_of(adapters, "a")
    assert adapters.get("a").host_bytes > 20_000 > size and not adapters.get("a").is_pinned
    await digest_of(adapters, "b")
    make_adapter(folder / "a", base, seed=0, head=HEADS[0])
    await adapters.load("a")
    await adapters.pin("a", True)


async def test_a_folder_that_is_replaced_while_it_is_read_is_never_served_half_and_half(
    start: Start, folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = set()
    for seed in (3, 4):
        replace_whole(folder / "a", base, seed, TAGS)
        whole.add(await digest_of(await start(disk_path=""), "a"))
    replace_whole(folder / "a", base, 3, TAGS)
    read_adapter, replaced = adapterhub._read_adapter, []

    def read_and_replace(*arguments: Any) -> Any:
        adapter = read_adapter(*arguments)
        if not replaced:  # between the adapter and its head
            replaced.append(1)
            replace_whole(folder / "a", base, 4, TAGS)
        return adapter

    monkeypatch.setattr(adapterhub, "_read_adapter", read_and_replace)
    assert await digest_of(await start(disk_path=""), "a") in whole and replaced


async def test_files_that_change_whenever_they_are_read_are_given_up(
    start: Start, folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seeds = origin.read_checkpoint, iter(range(100))

    def read_and_replace(path: Path, **options: Any) -> Any:
        replace_whole(folder / "a", base, next(seeds))
        return read(path, **options)

    monkeypatch.setattr(origin, "read_checkpoint", read_and_replace)
    adapters = await start(disk_path="")
    with pytest.raises(Unavailable, match="changed whenever they were read"):
        await adapters.ready("a")
