from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_adapters import HEADS, make_adapter, make_variant

from adapters_cache import origin, workers
from adapters_cache.adapters import Adapters
from adapters_cache.failures import REMEMBERED_S
from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.host import HostLease
from adapters_cache.manifest import make_manifest
from adapters_cache.residency import Residency
from adapters_cache.sources import FolderSource
from server.config import CacheConfig
from server.core import Adapter, BaseInfo, Tier
from server.errors import (
    AdapterChanged,
    AdapterNotFound,
    InvalidInput,
    MalformedCheckpoint,
    Overloaded,
    TooLarge,
    Unavailable,
    UnsupportedConfig,
    WrongBase,
)
from server.metrics import Metrics


class Slots:
    def slot_bytes(self, adapter: Adapter) -> int:
        return adapter.size_bytes

    def free(self, slot: int) -> None:
        pass


class Gate:
    """Counts reads of the origin, and holds them back while closed."""

    def __init__(self, adapters: Adapters) -> None:
        self.num_reads = 0
        self._open = threading.Event()
        self._open.set()
        self._read = adapters._origin._read
        adapters._origin._read = self._counted  # type: ignore[method-assign, assignment]

    def _counted(self, *args: Any) -> Any:
        self.num_reads += 1
        assert self._open.wait(30)
        return self._read(*args)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def folder(tmp_path: Path, base: BaseInfo) -> Path:
    for index, name in enumerate(("a", "b", "c")):
        make_adapter(tmp_path / "adapters" / name, base, seed=index, head=HEADS[index])
    return tmp_path / "adapters"


@pytest.fixture
def residency(metrics: Metrics) -> Residency:
    return Residency(Slots(), 1 << 20, metrics)


@pytest.fixture
async def start(
    folder: Path, base: BaseInfo, residency: Residency, metrics: Metrics
) -> AsyncIterator[Callable[..., Any]]:
    started: list[Adapters] = []

    async def start(**config: Any) -> Adapters:
        adapters = Adapters(CacheConfig((folder,), **config), base, torch.float32, residency, metrics)
        await adapters.start()
        started.append(adapters)
        return adapters

    yield start
    for adapters in started:
        adapters.check_integrity()
        await adapters.stop()


@pytest.fixture
async def adapters(start: Callable[..., Any]) -> Adapters:
    made: Adapters = await start()
    return made


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def use_on_device(residency: Residency, lease: HostLease) -> None:
    slot = residency.acquire(lease.adapter)
    assert slot is not None
    slot.release()


async def test_base_needs_no_adapter(adapters: Adapters) -> None:
    lease = await adapters.ready("base")
    assert lease.adapter is None
    lease.release()


async def test_adapter_is_ready_under_its_folder_name(adapters: Adapters) -> None:
    lease = await adapters.ready("b")
    assert lease.adapter is not None and lease.adapter.manifest.name == "b"
    status = adapters.get("b")
    assert status.manifest == lease.adapter.manifest and status.tier is Tier.HOST
    assert status.task == "classification" and status.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert status.host_bytes == lease.adapter.size_bytes and status.loaded_at and status.last_used_at
    lease.release()


async def test_unknown_adapter_is_not_found(adapters: Adapters) -> None:
    for call in (adapters.ready, adapters.load, adapters.unload):
        with pytest.raises(AdapterNotFound):
            await call("nothing")
    for name in ("../a", "", "x" * 500):
        with pytest.raises(AdapterNotFound):
            await adapters.load(name)
    with pytest.raises(InvalidInput):
        await adapters.load("base")


async def test_folders_that_hold_no_adapter_or_have_no_name_are_left_out(
    folder: Path, base: BaseInfo, start: Callable[..., Any]
) -> None:
    (folder / "empty").mkdir()
    make_adapter(folder / "base", base)
    make_adapter(folder / ".hidden", base, name="x")
    page, total = (await start()).list()
    assert [status.name for status in page] == ["a", "b", "c"] and total == 3


async def test_hundred_first_requests_are_one_load(adapters: Adapters) -> None:
    gate = Gate(adapters)
    leases = await asyncio.gather(*(adapters.ready("a") for _ in range(100)))
    assert gate.num_reads == 1 and len({id(lease.adapter) for lease in leases}) == 1
    for lease in leases:
        lease.release()


async def test_cancelled_caller_does_not_cancel_the_load_of_the_others(adapters: Adapters) -> None:
    gate = Gate(adapters)
    gate.close()
    callers = [asyncio.create_task(adapters.ready("a")) for _ in range(3)]
    await turn()
    callers[0].cancel()
    await turn()
    assert callers[0].cancelled()
    gate.open()
    for caller in callers[1:]:
        (await caller).release()
    assert gate.num_reads == 1
    assert await adapters.unload("a") > (0, 0, 0)


async def test_load_goes_on_when_every_caller_has_left(adapters: Adapters) -> None:
    gate = Gate(adapters)
    gate.close()
    caller = asyncio.create_task(adapters.ready("a"))
    await turn()
    caller.cancel()
    [flight] = adapters._all_flights
    gate.open()
    await asyncio.wait([flight._task])
    await turn()
    assert adapters.get("a").tier is Tier.HOST and gate.num_reads == 1
    await adapters.unload("a")  # would wait for ever if a lease were left


async def test_failed_load_is_told_to_all_remembered_and_tried_again(adapters: Adapters, folder: Path) -> None:
    path = folder / "a" / "adapter.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    gate = Gate(adapters)
    errors = await asyncio.gather(*(adapters.ready("a") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, MalformedCheckpoint) for error in errors) and gate.num_reads == 1
    assert "truncated" in adapters.get("a").error
    path.write_bytes(whole)
    (await adapters.ready("a")).release()
    assert adapters.get("a").error == "" and gate.num_reads == 2


async def test_slow_load_delays_only_those_who_need_it(adapters: Adapters) -> None:
    (await adapters.ready("b")).release()
    gate = Gate(adapters)
    gate.close()
    slow = asyncio.create_task(adapters.ready("a"))
    await turn()
    (await adapters.ready("b")).release()
    assert not slow.done()
    gate.open()
    (await slow).release()


async def test_load_that_takes_too_long_is_unavailable(start: Callable[..., Any]) -> None:
    adapters = await start(load_timeout_s=0.02)
    gate = Gate(adapters)
    gate.close()
    with pytest.raises(Unavailable, match="load_timeout_s 0.02"):
        await adapters.ready("a")
    gate.open()


async def test_stopping_answers_those_who_wait(adapters: Adapters) -> None:
    gate = Gate(adapters)
    gate.close()
    caller = asyncio.create_task(adapters.ready("a"))
    await turn()
    await adapters.stop()
    with pytest.raises(Unavailable, match="stopping"):
        await caller
    gate.open()


async def test_load_moves_the_name_and_requests_in_flight_keep_the_old(
    adapters: Adapters, residency: Residency, folder: Path, base: BaseInfo
) -> None:
    old = await adapters.ready("a")
    assert old.adapter is not None
    use_on_device(residency, old)
    make_adapter(folder / "a", base, seed=77)
    status, previous = await adapters.load("a")
    assert previous == old.adapter.digest != (status.manifest and status.manifest.digest)
    new = await adapters.ready("a")
    assert new.adapter is not None and new.adapter.digest != old.adapter.digest
    use_on_device(residency, old)  # a request that was queued while the name moved
    assert residency.bytes_of(old.adapter.digest) and adapters._host.is_held(old.adapter.digest)
    old.release()
    assert not residency.bytes_of(old.adapter.digest) and not adapters._host.is_held(old.adapter.digest)
    new.release()


async def test_load_of_what_did_not_change_moves_nothing(adapters: Adapters) -> None:
    lease = await adapters.ready("a")
    status, previous = await adapters.load("a")
    assert lease.adapter is not None and status.manifest is not None
    assert previous == status.manifest.digest == lease.adapter.digest
    again = await adapters.ready("a")
    assert again.adapter is lease.adapter
    lease.release()
    again.release()


async def test_failed_load_leaves_the_name_where_it_was(adapters: Adapters, folder: Path) -> None:
    (await adapters.ready("a")).release()
    (folder / "a" / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(MalformedCheckpoint):
        await adapters.load("a")
    assert adapters.get("a").error
    (await adapters.ready("a")).release()


async def test_load_finds_adapters_that_came_after_the_start(adapters: Adapters, folder: Path, base: BaseInfo) -> None:
    make_adapter(folder / "new", base, seed=9)
    with pytest.raises(AdapterNotFound):
        await adapters.ready("new")
    status, previous = await adapters.load("new")
    assert previous == "" and status.tier is Tier.HOST
    (await adapters.ready("new")).release()


async def test_older_read_never_replaces_a_newer_one(start: Callable[..., Any], folder: Path, base: BaseInfo) -> None:
    make_adapter(folder / "twin", base, seed=42)
    adapters: Adapters = await start(host_bytes=20_000)
    leases = [await adapters.ready(name) for name in ("twin", "b")]
    adapters._host._books.budget_bytes = adapters._host.used_bytes  # nothing more until a lease ends
    older = asyncio.create_task(adapters.ready("a"))
    await turn()
    [flight] = adapters._all_flights
    while adapters._origin.is_busy(FolderSource(folder / "a"), "a") or not flight.has_begun:
        await asyncio.sleep(0)
    make_adapter(folder / "a", base, seed=42)
    status, previous = await adapters.load("a")  # its twin is there: nothing to wait for
    assert previous == "" and not older.done()
    leases[1].release()
    with await older as lease:
        assert lease.adapter is not None and status.manifest is not None
        assert lease.adapter.digest != status.manifest.digest and adapters.get("a").manifest == status.manifest
    await turn()
    assert not adapters._host.is_held(lease.adapter.digest)
    leases[0].release()


async def test_unload_gives_back_every_byte_and_keeps_the_name(adapters: Adapters, residency: Residency) -> None:
    lease = await adapters.ready("a")
    assert lease.adapter is not None
    use_on_device(residency, lease)
    size = lease.adapter.size_bytes
    unloading = asyncio.create_task(adapters.unload("a"))
    await turn()
    assert not unloading.done()
    use_on_device(residency, lease)  # it was accepted before
    lease.release()
    assert await unloading == (size, size, 0)
    assert residency.used_bytes == 0 and adapters._host.used_bytes == 0
    assert adapters.get("a").tier is Tier.ORIGIN and await adapters.unload("a") == (0, 0, 0)
    (await adapters.ready("a")).release()


async def test_cancelled_unload_still_gives_everything_back(adapters: Adapters, residency: Residency) -> None:
    lease = await adapters.ready("a")
    use_on_device(residency, lease)
    unloading = asyncio.create_task(adapters.unload("a"))
    await turn()
    unloading.cancel()
    await asyncio.wait([unloading])
    lease.release()
    assert residency.used_bytes == 0 and adapters._host.used_bytes == 0


async def test_request_during_unload_reads_the_origin_again(adapters: Adapters) -> None:
    gate = Gate(adapters)
    old = await adapters.ready("a")
    unloading = asyncio.create_task(adapters.unload("a"))
    await turn()
    new = await adapters.ready("a")
    assert gate.num_reads == 2 and new.adapter is not old.adapter
    old.release()
    await unloading
    assert adapters.get("a").tier is Tier.HOST
    new.release()


async def test_names_with_one_digest_share_memory(adapters: Adapters, folder: Path, base: BaseInfo) -> None:
    make_adapter(folder / "twin", base, seed=0, head=HEADS[0])
    await adapters.load("twin")
    one, two = await adapters.ready("a"), await adapters.ready("twin")
    assert one.adapter is two.adapter
    names = [adapters.get(name).manifest for name in ("a", "twin")]
    assert [manifest and manifest.name for manifest in names] == ["a", "twin"]
    one.release()
    two.release()
    assert await adapters.unload("a") == (0, 0, 0)
    assert adapters.get("twin").tier is Tier.HOST
    assert (await adapters.unload("twin"))[0] > 0


async def test_pinned_adapter_survives_pressure_and_its_pin_follows_the_name(
    start: Callable[..., Any], folder: Path, base: BaseInfo
) -> None:
    adapters = await start(host_bytes=10_000)  # less than all three
    assert (await adapters.pin("a", True)).is_pinned
    for name in ("b", "c", "b", "c"):
        (await adapters.ready(name)).release()
    assert adapters.get("a").tier is Tier.HOST
    make_adapter(folder / "a", base, seed=5)
    status, _ = await adapters.load("a")
    assert status.is_pinned and adapters._host._books._pinned == {status.manifest and status.manifest.digest}
    assert not (await adapters.pin("a", False)).is_pinned
    assert not adapters._host._books._pinned


async def test_adapter_larger_than_a_tier_is_refused_when_it_is_loaded(
    start: Callable[..., Any], residency: Residency
) -> None:
    with pytest.raises(TooLarge, match="host_bytes is 10"):
        await (await start(host_bytes=10)).ready("a")
    residency._books.budget_bytes = 10
    adapters = await start()
    with pytest.raises(TooLarge, match="device_bytes is 10"):
        await adapters.load("a")
    assert adapters._host.used_bytes == 0 and "device_bytes" in adapters.get("a").error


async def evict_from_host(adapters: Adapters, name: str) -> None:
    """As pressure would do."""
    manifest = adapters.get(name).manifest
    assert manifest is not None
    adapters._host.doom(manifest.digest)


async def test_name_keeps_its_digest_when_the_folder_changes_until_load(
    adapters: Adapters, folder: Path, base: BaseInfo
) -> None:
    (await adapters.ready("a")).release()
    before = adapters.get("a").manifest
    make_adapter(folder / "a", base, seed=77)
    (await adapters.ready("a")).release()  # it is in memory
    await evict_from_host(adapters, "a")
    for _ in range(2):
        with pytest.raises(AdapterChanged, match="call Load"):
            await adapters.ready("a")
    status = adapters.get("a")
    assert status.manifest == before and "changed at its origin" in status.error
    status, previous = await adapters.load("a")
    assert before is not None and previous == before.digest and status.manifest != before and not status.error
    (await adapters.ready("a")).release()


async def test_half_copied_file_does_not_cost_a_name_its_digest(adapters: Adapters, folder: Path) -> None:
    (await adapters.ready("a")).release()
    before, path = adapters.get("a").manifest, folder / "a" / "adapter.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    await evict_from_host(adapters, "a")
    with pytest.raises(MalformedCheckpoint):
        await adapters.ready("a")
    assert adapters.get("a").manifest == before and adapters.get("a").error
    path.write_bytes(whole)
    (await adapters.ready("a")).release()
    assert adapters.get("a").manifest == before and not adapters.get("a").error


async def test_unload_lets_a_name_stand_for_what_is_there_next(
    adapters: Adapters, folder: Path, base: BaseInfo
) -> None:
    (await adapters.ready("a")).release()
    make_adapter(folder / "a", base, seed=77)
    await evict_from_host(adapters, "a")
    with pytest.raises(AdapterChanged):
        await adapters.ready("a")
    await adapters.unload("a")
    (await adapters.ready("a")).release()


async def test_refused_adapter_is_not_read_again_at_once(
    adapters: Adapters, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(adapters._loader._failures, "_clock", lambda: now[0])
    reads: list[Path] = []

    def read(path: Path, **limits: Any) -> Any:
        reads.append(path)
        return read_checkpoint(path, **limits)

    monkeypatch.setattr(origin, "read_checkpoint", read)
    (folder / "a" / "adapter.safetensors").write_bytes(b"")
    for _ in range(5):
        with pytest.raises(MalformedCheckpoint):
            await adapters.ready("a")
    assert len(reads) == 1
    now[0] += REMEMBERED_S
    with pytest.raises(MalformedCheckpoint):
        await adapters.ready("a")
    assert len(reads) == 2
    with pytest.raises(MalformedCheckpoint):
        await adapters.load("a")
    assert len(reads) == 3
    (await adapters.ready("b")).release()
    assert len(reads) == 4


async def test_loads_at_the_same_time_share_a_read_that_has_not_begun(adapters: Adapters) -> None:
    gate = Gate(adapters)
    answers = await asyncio.gather(*(adapters.load("a") for _ in range(50)))
    assert gate.num_reads <= 2 and len({status.manifest and status.manifest.digest for status, _ in answers}) == 1


async def test_load_finds_what_came_after_another_load_had_begun(
    adapters: Adapters, folder: Path, base: BaseInfo
) -> None:
    first = adapters._take_off_load(adapters._registry.get("a"))
    while not first.has_begun:
        await asyncio.sleep(0)
    wanted = make_adapter(folder / "a", base, seed=5)
    status, _ = await adapters.load("a")
    assert status.manifest == dataclasses.replace(make_manifest(wanted, base), name="a")


async def test_folder_that_hangs_takes_one_thread(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    adapters: Adapters = await start(load_timeout_s=0.05, max_concurrent_loads=2)
    going_on, threads = threading.Event(), []

    def read(path: Path, **limits: Any) -> Any:
        threads.append(path.name)
        assert path.name == "b" or going_on.wait(30)
        return read_checkpoint(path, **limits)

    monkeypatch.setattr(origin, "read_checkpoint", read)
    for call in (adapters.ready, adapters.load, adapters.ready, adapters.load):
        with pytest.raises(Unavailable, match="load_timeout_s"):
            await call("a")
    assert threads == ["a"]
    monkeypatch.setattr(adapters._loader, "_timeout_s", 30)
    (await adapters.ready("b")).release()
    with pytest.raises(Unavailable, match="it is tried again in") as refused:
        await adapters.ready("a")
    assert refused.value.retry_after_s and 0 < refused.value.retry_after_s <= 4
    going_on.set()
    (await adapters.load("a"))
    (await adapters.ready("a")).release()


async def test_threads_that_hang_make_room_for_others(
    start: Callable[..., Any], folder: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_adapter(folder / f"stuck{number}", base, seed=10 + number)
    adapters: Adapters = await start(load_timeout_s=0.05, max_concurrent_loads=1)
    going_on = threading.Event()

    def read(path: Path, **limits: Any) -> Any:
        assert not path.name.startswith("stuck") or going_on.wait(30)
        return read_checkpoint(path, **limits)

    monkeypatch.setattr(origin, "read_checkpoint", read)
    for number in range(3):
        with pytest.raises(Unavailable):
            await adapters.ready(f"stuck{number}")
    monkeypatch.setattr(adapters._loader, "_timeout_s", 30)
    (await adapters.ready("b")).release()
    monkeypatch.setattr(workers, "MAX_GIVEN_UP", 3)
    with pytest.raises(Unavailable, match="origin 'adapters' does not answer: 3 reads of it hang"):
        await adapters.ready("c")
    going_on.set()
    while adapters._origin._workers[str(folder)]._given_up:
        await asyncio.sleep(0.01)
    await adapters.load("c")


async def test_a_pickle_that_hangs_is_refused_before_the_load_is_given_up(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def read(path: Path, **given: Any) -> Any:
        limits.append(given["pickle_timeout_s"])
        return read_checkpoint(path, **given)

    monkeypatch.setattr(origin, "read_checkpoint", read)
    (await (await start(load_timeout_s=7.0)).ready("a")).release()
    assert len(limits) == 1 and 0 < limits[0] < 7.0


async def test_pin_that_would_leave_too_little_is_refused_with_the_numbers(
    start: Callable[..., Any], residency: Residency
) -> None:
    adapters: Adapters = await start()
    for name in "abc":
        (await adapters.ready(name)).release()
    sizes = sorted(adapters.get(name).host_bytes for name in "abc")
    for books, option in ((residency._books, "device_bytes"), (adapters._host._books, "host_bytes")):
        whole, books.budget_bytes = books.budget_bytes, adapters.get("a").host_bytes + sizes[-1]
        await adapters.pin("a", True)
        assert (await adapters.pin("a", True)).is_pinned  # nothing new
        with pytest.raises(Overloaded, match=f"of {option} {books.budget_bytes} .* takes {sizes[-1]}"):
            await adapters.pin("b", True)
        assert not adapters.get("b").is_pinned
        await adapters.pin("a", False)
        books.budget_bytes = whole


async def test_pin_that_is_away_keeps_its_claim(start: Callable[..., Any]) -> None:
    adapters: Adapters = await start()
    await adapters.pin("a", True)
    (await adapters.ready("b")).release()
    adapters._host._books.budget_bytes = adapters._host.used_bytes + 1
    await adapters.unload("a")
    with pytest.raises(Overloaded, match="pinned"):
        await adapters.pin("b", True)


async def test_names_of_one_digest_count_once_among_the_pinned(
    start: Callable[..., Any], folder: Path, base: BaseInfo
) -> None:
    make_adapter(folder / "twin", base, seed=0, head=HEADS[0])
    adapters: Adapters = await start()
    await adapters.pin("a", True)
    adapters._host._books.budget_bytes = 2 * adapters._host.used_bytes
    assert (await adapters.pin("twin", True)).is_pinned


async def test_file_over_the_limit_is_malformed(start: Callable[..., Any]) -> None:
    with pytest.raises(MalformedCheckpoint, match="max_adapter_bytes"):
        await (await start(max_adapter_bytes=100)).ready("a")


async def test_bad_adapters_are_refused_and_harm_nobody(adapters: Adapters, folder: Path, base: BaseInfo) -> None:
    make_adapter(folder / "wrong", dataclasses.replace(base, model_type="roberta"))
    made = make_adapter(folder / "odd", base)
    envelope = json.loads((folder / "odd" / "adapter_config.json").read_text())
    envelope["config"] = {**(made.config or {}), "odd": 1}
    (folder / "odd" / "adapter_config.json").write_text(json.dumps(envelope))
    for name, kind in (("wrong", WrongBase), ("odd", UnsupportedConfig)):
        with pytest.raises(kind):
            await adapters.load(name)
        assert adapters.get(name).error
    (await adapters.ready("a")).release()


async def test_missing_folder_is_told_at_start(tmp_path: Path, base: BaseInfo, residency: Residency) -> None:
    config = CacheConfig((tmp_path / "absent",))
    with pytest.raises(InvalidInput, match="absent"):
        await Adapters(config, base, torch.float32, residency, Metrics()).start()


async def test_many_callers_with_little_room_all_get_their_adapter(
    start: Callable[..., Any], folder: Path, base: BaseInfo, residency: Residency
) -> None:
    for index in range(12):
        make_variant(folder / f"v{index}", base, index)
    probe: Adapters = await start()
    digests, sizes = {}, {}
    for index in range(12):
        with await probe.ready(f"v{index}") as lease:
            assert lease.adapter is not None
            digests[f"v{index}"], sizes[f"v{index}"] = lease.adapter.digest, lease.adapter.size_bytes
        await probe.unload(f"v{index}")
    adapters: Adapters = await start(host_bytes=2 * max(sizes.values()))

    async def caller(number: int) -> None:
        name = f"v{number % 12}"
        if number % 10 == 9:
            await (adapters.unload(name) if number % 20 == 9 else adapters.load(name))
            return
        with await adapters.ready(name) as lease:
            await asyncio.sleep(0)
            assert lease.adapter is not None and lease.adapter.digest == digests[name]

    await asyncio.gather(*(caller(number) for number in range(300)))
    adapters.check_integrity()
    for name in digests:
        await adapters.unload(name)
    assert adapters._host.used_bytes == 0 and not adapters._all_flights and not adapters._pointing.unloading
