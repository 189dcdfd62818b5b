"""The disk tier's folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from server.config import MIB, CacheConfig
from server.doctor import disk as module
from server.doctor.disk import disk, disk_space, file_system_of
from server.doctor.finding import State


def tier(folder: Path, disk_bytes: int = MIB) -> CacheConfig:
    return CacheConfig(disk_path=str(folder), disk_bytes=disk_bytes)


@pytest.fixture(autouse=True)
def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Tests may run anywhere, in memory too."""
    monkeypatch.setattr(module, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text("/dev/sda / ext4 rw 0 0\n")
    return tmp_path / "mounts"


def test_a_folder_that_can_be_made_is_well_and_not_made(tmp_path: Path) -> None:
    assert disk(tier(tmp_path / "new" / "tier")).state is State.OK
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = disk(tier(tmp_path / "file" / "tier"))
    assert (found.name, found.state) == ("disk", State.PROBLEM)
    assert str(tmp_path / "file" / "tier") in found.message and "--disk (cache.disk_path)" in found.remedy


def test_a_folder_of_another_server_is_told(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = disk(tier(tmp_path))
        assert found.state is State.PROBLEM and "in use by another server" in found.message
    assert disk(tier(tmp_path)).state is State.OK


def test_a_folder_in_memory_is_a_warning(tmp_path: Path, mounts: Path) -> None:
    with mounts.open("a") as file:
        file.write(f"tmpfs {tmp_path}/with\\040blank tmpfs rw 0 0\n")
    (tmp_path / "with blank").mkdir()
    assert file_system_of(tmp_path) == "ext4"
    found = disk(tier(tmp_path / "with blank" / "tier"))
    assert found.state is State.WARNING and "tmpfs" in found.message


def test_room_is_held_against_the_budget_with_what_is_there(tmp_path: Path) -> None:
    assert disk_space(tier(tmp_path)).state is State.OK
    found = disk_space(tier(tmp_path, disk_bytes=1 << 60))
    assert found.state is State.WARNING and "--set cache.disk_bytes=" in found.remedy
