"""The disk tier's folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from adapters_cache.disk import CONVERTED, LOCK
from server.config import MIB, CacheConfig
from server.doctor.finding import Finding, ok, problem, warning

MOUNTS = Path("/proc/self/mounts")
IN_MEMORY = ("tmpfs", "ramfs")


def disk(cache: CacheConfig) -> Finding:
    """Whether the folder can be written, is nobody else's, and outlives a restart."""
    folder = Path(cache.disk_path)
    try:
        _write(_nearest(folder))
    except OSError as error:
        return problem(
            "disk",
            f"disk_path {cache.disk_path!r} cannot be written: {error.strerror or error}",
            f"mkdir -p {cache.disk_path} as the user that serves, or name another folder: --disk (cache.disk_path)",
        )
    if _is_locked(folder / LOCK):
        return problem(
            "disk",
            f"disk_path {cache.disk_path!r} is in use by another server",
            "stop that one, or give each server a folder of its own: --disk (cache.disk_path)",
        )
    if (kind := file_system_of(folder)) in IN_MEMORY:
        return warning(
            "disk",
            f"disk_path {cache.disk_path!r} is on {kind}: it takes memory and is gone after a restart",
            "name a folder on a disk: --disk (cache.disk_path)",
        )
    return ok("disk", f"{cache.disk_path} can be written")


def disk_space(cache: CacheConfig) -> Finding:
    """Room for what the tier may grow to, with what it holds already."""
    folder = Path(cache.disk_path)
    held = _held_bytes(folder / CONVERTED)
    free = shutil.disk_usage(_nearest(folder)).free
    shown = f"{free // MIB:,} MiB are free, the tier holds {held // MIB:,} MiB, disk_bytes allows"
    if free + held >= cache.disk_bytes:
        return ok("disk_space", f"{shown} {cache.disk_bytes // MIB:,} MiB")
    fitting = max(MIB, (free + held) * 9 // 10 // MIB * MIB)
    return warning(
        "disk_space",
        f"{shown} {cache.disk_bytes // MIB:,} MiB",
        f"--set cache.disk_bytes={fitting}, or free some room in {cache.disk_path}",
    )


def _nearest(folder: Path) -> Path:
    """The folder, or the one that it would be created in."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _write(folder: Path) -> None:
    """Raises OSError. What is written has no name afterwards."""
    if not folder.is_dir():
        raise NotADirectoryError(0, f"{folder} is not a folder")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
        file.flush()


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _held_bytes(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def file_system_of(folder: Path) -> str:
    """The type of the file system that holds a folder; empty where the system does not tell."""
    try:
        rows = [line.split() for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    path = _nearest(folder).resolve()
    # blanks in a mount point are written as \040
    points = [(Path(row[1].encode().decode("unicode_escape")), row[2]) for row in rows]
    holding = [(len(point.parts), kind) for point, kind in points if path.is_relative_to(point)]
    return max(enumerate(holding), key=lambda item: (item[1][0], item[0]))[1][1] if holding else ""
