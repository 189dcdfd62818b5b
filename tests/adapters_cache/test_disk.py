"""The disk tier: what is read is what was written, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_adapters import random_checkpoint

from adapters_cache import disk as module
from adapters_cache import spec_json
from adapters_cache.build import build_adapter
from adapters_cache.disk import DiskTier
from server.core import Adapter, BaseInfo, Tier
from server.errors import InvalidInput
from server.metrics import Metrics

METHODS = [
    "seq_bn", "double_seq_bn", "par_bn", "seq_bn_inv", "compacter[reduction_factor=4,phm_dim=4]", "prefix_tuning",
    "prompt_tuning", "lora", "ia3", "loreft", "noreft", "mam", "unipelt",
]  # fmt: skip
HEAD = {"head_type": "tagging", "num_labels": 3}


@pytest.fixture
def made(base: BaseInfo) -> Callable[..., Adapter]:
    def make(seed: int, method: str = "seq_bn[reduction_factor=4]", dtype: torch.dtype = torch.float32) -> Adapter:
        return build_adapter(random_checkpoint(base, config=method, head=HEAD, seed=seed), base, dtype)

    return make


@pytest.fixture
def tier(tmp_path: Path, metrics: Metrics) -> Iterator[DiskTier]:
    tier = DiskTier(tmp_path / "disk", 1 << 20, torch.float32, metrics)
    yield tier
    tier.check_integrity()
    tier.close()


def opened(tmp_path: Path, budget_bytes: int = 1 << 20, dtype: torch.dtype = torch.float32) -> DiskTier:
    return DiskTier(tmp_path / "disk", budget_bytes, dtype, Metrics())


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "disk" / "converted").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_is_what_was_written(method: str, tier: DiskTier, made: Callable[..., Adapter]) -> None:
    adapter = made(1, method)
    assert tier.get(adapter.digest) is None and tier.put(adapter)
    found = tier.get(adapter.digest)
    assert found is not None and found.manifest == adapter.manifest and found.spec == adapter.spec
    assert torch.equal(found.weights, adapter.weights) and found.size_bytes == adapter.size_bytes


def test_a_description_of_another_version_is_refused(made: Callable[..., Adapter]) -> None:
    with pytest.raises(ValueError):
        spec_json.loads("[[]]")


def test_files_outlive_the_process_in_the_order_of_use(made: Callable[..., Adapter], tmp_path: Path) -> None:
    tier = opened(tmp_path)
    adapters = [made(seed) for seed in range(3)]
    for age, adapter in enumerate(adapters):
        tier.put(adapter)
        os.utime(tier._path(adapter.digest), (1000 + age, 1000 + age))
    tier.get(adapters[0].digest)  # now the latest
    size = tier.used_bytes // 3
    tier.close()
    other = opened(tmp_path, budget_bytes=2 * size)
    assert len(other.digests()) == 3  # until it is told what is kept
    other.keep(())
    assert other.digests() == [adapters[2].digest, adapters[0].digest] and len(files(tmp_path)) == 2
    other.check_integrity()
    other.close()


def test_the_least_recently_used_makes_room_unless_it_is_kept(
    tier: DiskTier, made: Callable[..., Adapter], tmp_path: Path
) -> None:
    adapters = [made(seed) for seed in range(4)]
    tier.put(adapters[0])
    tier.budget_bytes = 2 * tier.used_bytes
    tier.put(adapters[1])
    tier.get(adapters[0].digest)
    tier.put(adapters[2])
    assert tier.digests() == [adapters[0].digest, adapters[2].digest]
    tier.keep({adapters[0].digest, adapters[2].digest})
    assert not tier.put(adapters[3]) and tier.get(adapters[3].digest) is None
    assert tier.digests() == [adapters[0].digest, adapters[2].digest]


@pytest.mark.parametrize("damage", ["truncated", "bit", "description", "empty", "gone"])
def test_damage_is_found_and_costs_the_file(
    damage: str, tier: DiskTier, made: Callable[..., Adapter], tmp_path: Path
) -> None:
    adapter = made(1)
    tier.put(adapter)
    [path] = files(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-8]
    elif damage == "bit":
        content[-5] ^= 1
    elif damage == "description":
        at = content.index(b"LABEL_1")
        content[at : at + 7] = b"LABEL_2"
    elif damage == "empty":
        content = bytearray()
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    assert tier.get(adapter.digest) is None and not files(tmp_path) and tier.used_bytes == 0
    assert tier.put(adapter) and tier.get(adapter.digest) is not None


def test_a_file_of_another_dtype_or_a_write_that_was_cut_off_is_removed(
    made: Callable[..., Adapter], tmp_path: Path
) -> None:
    tier = opened(tmp_path)
    tier.put(made(1))
    folder = tmp_path / "disk" / "converted"
    (folder / f"{0:032x}.partial").write_bytes(b"half")
    (folder / "notes.txt").write_text("somebody else's")
    tier.close()
    half = opened(tmp_path, dtype=torch.bfloat16)
    assert half.digests() == [] and [path.name for path in files(tmp_path)] == ["notes.txt"]
    half.close()


def test_a_full_disk_costs_the_copy_only(
    tier: DiskTier, made: Callable[..., Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    assert not tier.put(made(1)) and tier.used_bytes == 0 and not files(tmp_path)
    text = metrics.render().decode()
    assert 'adapterd_loads_total{outcome="UNAVAILABLE",tier="disk"} 1.0' in text
    assert f'tier="{Tier.DISK.value}"' in text


def test_what_cannot_be_opened_for_a_moment_stays(
    tier: DiskTier, made: Callable[..., Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = made(1)
    tier.put(adapter)

    def refuse(self: Path, mode: str, buffering: int = -1) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert tier.get(adapter.digest) is None and adapter.digest in tier
    assert tier.get(adapter.digest) is not None


def test_names_of_one_digest_take_its_bytes_once(
    tier: DiskTier, made: Callable[..., Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, write = made(1), module.write_whole
    twin = replace(adapter, manifest=replace(adapter.manifest, name="another-name"))

    def meanwhile(path: Path, content: bytes) -> None:
        monkeypatch.setattr(module, "write_whole", write)
        tier.put(twin)  # in another thread
        write(path, content)

    monkeypatch.setattr(module, "write_whole", meanwhile)
    assert tier.put(adapter)
    tier.check_integrity()


def test_one_folder_is_one_servers(tier: DiskTier, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="in use by another server"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="disk_path 'sub' cannot be written"):
        DiskTier(tmp_path / "file" / "sub", 1 << 20, torch.float32, Metrics())


WRITER = """
import sys, torch
from pathlib import Path
from adapters_cache.disk import DiskTier
from server.core import Adapter, Manifest
from server.metrics import Metrics
from server.primitives import AdapterSpec

tier = DiskTier(Path(sys.argv[1]), 1 << 30, torch.float32, Metrics())
print("begins", flush=True)
for seed in range(int(sys.argv[2]), 1 << 30):
    manifest = Manifest("a", f"{seed:064x}", "none", "bert", 1, 1)
    tier.put(Adapter(manifest, AdapterSpec({}, None, 1 << 18), torch.full((1 << 18,), float(seed)), 1 << 20))
    print(seed, flush=True)
"""


def kill_while_writing(folder: Path, first: int, delay_s: float) -> int:
    """The last adapter that the writer said was written; -1 if none was."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WRITER, str(folder), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split()
    return int(said[-1]) if said else -1


def check_after_kill(folder: Path, last: int, first: int) -> None:
    """Whatever was said to be written is there, and whatever is there is whole."""
    tier = DiskTier(folder, 1 << 30, torch.float32, Metrics())
    try:
        tier.check_integrity()
        assert {f"{seed:064x}" for seed in range(first, last + 1)} <= set(tier.digests())
        for digest in tier.digests():
            found = tier.get(digest)
            assert found is not None and bool((found.weights == float(int(digest, 16))).all())
            tier.remove(digest)
    finally:
        tier.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(3))
def test_a_kill_leaves_what_was_written_and_nothing_else(number: int, tmp_path: Path) -> None:
    last = kill_while_writing(tmp_path, 0, 0.05 + 0.033 * number)
    check_after_kill(tmp_path, last, 0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path: Path) -> None:
    for number in range(200):
        last = kill_while_writing(tmp_path, number * 1000, 0.01 + 0.0007 * number)
        check_after_kill(tmp_path, last, number * 1000)
