"""The disk tier: lowered adapters as checksummed safetensors, served from the memory that they are read into.

<folder>/converted/<digest>.<dtype>.safetensors   one tensor, `weights`; what it means lies in the file's metadata
<folder>/converted/<hex>.partial                  being written; what lies there at start was left by a kill
<folder>/lock                                     one process at a time

A file appears when all of it is on the disk, and is verified whenever it is read: what does not hold is removed and
read from the origin again. From any thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save

from adapters_cache import spec_json
from adapters_cache.lowering import VERSION as LOWERING
from server.core import Adapter, Manifest, Tier
from server.errors import InvalidInput
from server.memory import pages
from server.metrics import Metrics

CONVERTED, LOCK, SUFFIX, PARTIAL = "converted", "lock", ".safetensors", ".partial"
OWN = re.compile(r"[0-9a-f]{64}\.[a-z0-9]+\.safetensors|[0-9a-f]{32}\.partial")
SCHEMA = f"{spec_json.SCHEMA}.{LOWERING}"
WEIGHTS = "weights"
PREFIX_BYTES = 8  # of a safetensors file: the length of its header
ALIGNMENT = 64  # of the weights, in bytes
TOUCH_S = 60.0  # between notes of an adapter's last use
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors calls them
log = logging.getLogger(__name__)


class DiskTier:
    """Files by digest under a byte budget. `kept` are digests that are not evicted."""

    def __init__(
        self, folder: Path, budget_bytes: int, dtype: torch.dtype, metrics: Metrics, *, pin_memory: bool = False
    ) -> None:
        """Raises InvalidInput where the folder cannot be had."""
        self.budget_bytes = budget_bytes
        self._dtype, self._metrics, self._pin_memory = dtype, metrics, pin_memory
        self._folder = folder / CONVERTED
        self._mutex = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by digest, least recently used first
        self._touched: dict[str, float] = {}
        self._used_bytes = 0
        self._kept: Collection[str] = ()
        self._lock = _locked(folder)
        metrics.tier_budget(Tier.DISK, budget_bytes)
        self._take_stock()

    def close(self) -> None:
        os.close(self._lock)

    def keep(self, digests: Collection[str]) -> None:
        """Have these, and no others, survive eviction; the collection may change later. Then go below the budget."""
        self._kept = digests
        self._reserve(0)

    def __contains__(self, digest: str) -> bool:
        return digest in self._sizes

    def bytes_of(self, digest: str) -> int:
        return self._sizes.get(digest, 0)

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def digests(self) -> list[str]:
        return list(self._sizes)

    def get(self, digest: str) -> Adapter | None:
        """The adapter, verified, or None where it is not here. Reads a file: not on the event loop."""
        if digest not in self._sizes:
            self._metrics.cache_miss(Tier.DISK)
            return None
        path = self._path(digest)
        try:
            adapter = self._read(path, digest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read: %s", path.name, error)
            # what another look may find whole, after too many open files say, stays
            if isinstance(error, FileNotFoundError) or not isinstance(error, OSError):
                self.remove(digest)
            self._metrics.cache_miss(Tier.DISK)
            return None
        with self._mutex, suppress(KeyError):
            self._sizes.move_to_end(digest)
        if (now := time.monotonic()) - self._touched.get(digest, 0.0) > TOUCH_S:
            self._touched[digest] = now
            with suppress(OSError):
                os.utime(path)  # the order of use survives a restart, roughly
        self._metrics.cache_hit(Tier.DISK)
        return adapter

    def put(self, adapter: Adapter) -> bool:
        """Write an adapter, unless it is here; whether it is now. What fails costs the copy, not the request."""
        if adapter.digest in self._sizes:
            return True
        content, started = _packed(adapter), time.monotonic()
        if not self._reserve(len(content)):
            return False
        try:
            write_whole(self._path(adapter.digest), content)
        except OSError as error:
            log.warning("%s is not kept on disk: %s", adapter.manifest.name, error)
            self._settle(-len(content))
            self._metrics.load_done(Tier.DISK, time.monotonic() - started, "UNAVAILABLE")
            return False
        with self._mutex:
            before = self._sizes.get(adapter.digest, 0)  # of another name with the same digest, written meanwhile
            self._sizes[adapter.digest] = len(content)
        self._settle(-before)
        self._metrics.load_done(Tier.DISK, time.monotonic() - started, "ok")
        return True

    def remove(self, digest: str) -> int:
        """Give the bytes back that a digest takes here."""
        with self._mutex:
            size_bytes = self._sizes.pop(digest, 0)
            self._touched.pop(digest, None)
            self._used_bytes -= size_bytes
            self._report()
        if size_bytes:
            self._path(digest).unlink(missing_ok=True)
        return size_bytes

    def check_integrity(self) -> None:
        """AssertionError when the books and the folder disagree. While nothing is written."""
        with self._mutex:
            found = {path.name: path.stat().st_size for path in self._folder.iterdir() if OWN.fullmatch(path.name)}
            assert found == {self._path(digest).name: size for digest, size in self._sizes.items()}
            assert self._used_bytes == sum(self._sizes.values()) <= self.budget_bytes

    def _settle(self, size_bytes: int) -> None:
        with self._mutex:
            self._used_bytes += size_bytes
            self._report()

    def _reserve(self, size_bytes: int) -> bool:
        """Take `size_bytes`, evicting the least recently used if need be. If that cannot do, evict none."""
        with self._mutex:
            missing = self._used_bytes + size_bytes - self.budget_bytes
            victims = []
            for digest, size in self._sizes.items():
                if missing <= 0:
                    break
                if digest not in self._kept:
                    victims.append(digest)
                    missing -= size
            if missing > 0:
                return False
            self._used_bytes += size_bytes
        for digest in victims:
            age_s = self._age_s(digest)
            if self.remove(digest):
                self._metrics.eviction(Tier.DISK, age_s)
        return True

    def _age_s(self, digest: str) -> float:
        try:
            return max(0.0, time.time() - self._path(digest).stat().st_mtime)
        except OSError:
            return 0.0

    def _read(self, path: Path, digest: str) -> Adapter:
        """Raises ValueError for what is not, or no longer, what was written.

        By hand, in as few calls as can be: after each that leaves the interpreter a thread waits for its next turn,
        which made a load beside a busy server ten times as long as alone. The weights stay where they were read to.
        """
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            content = pages(size, torch.uint8)
            data: Any = content.numpy()
            view = memoryview(data)
            if size < PREFIX_BYTES or file.readinto(view) != size:
                raise ValueError("it is cut off")
        start = PREFIX_BYTES + int.from_bytes(view[:PREFIX_BYTES], "little")
        header = json.loads(bytes(view[PREFIX_BYTES:start]))
        facts, weights = header["__metadata__"], header[WEIGHTS]
        if facts["schema"] != SCHEMA or weights["dtype"] != DTYPES[self._dtype]:
            raise ValueError("it was written by another version, or in another dtype")
        if weights["data_offsets"] != [0, size - start]:
            raise ValueError("it is cut off")
        manifest = Manifest(**json.loads(facts["manifest"]))
        # of what was read: what is served is what was verified
        if manifest.digest != digest or facts["sha256"] != _checksum(facts["spec"], facts["manifest"], view[start:]):
            raise ValueError("its checksum does not hold")
        tensor = content[start:].view(self._dtype)
        spec = spec_json.loads(facts["spec"])
        return Adapter(manifest, spec, tensor.pin_memory() if self._pin_memory else tensor, size - start)

    def _take_stock(self) -> None:
        """What a former process left: whole files are used again, others removed."""
        found = []
        ending = f".{_name(self._dtype)}{SUFFIX}"
        for entry in os.scandir(self._folder):
            if not OWN.fullmatch(entry.name):
                continue
            if entry.name.endswith(ending):
                stat = entry.stat()
                found.append((stat.st_mtime, entry.name.removesuffix(ending), stat.st_size))
            else:  # of a write that was killed, or of another dtype
                Path(entry.path).unlink(missing_ok=True)
        for _, digest, size_bytes in sorted(found):
            self._sizes[digest] = size_bytes
            self._used_bytes += size_bytes
        self._report()

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.{_name(self._dtype)}{SUFFIX}"

    def _report(self) -> None:
        self._metrics.tier_bytes(Tier.DISK, self._used_bytes)
        self._metrics.tier_adapters(Tier.DISK, len(self._sizes))


def write_whole(path: Path, content: bytes) -> None:
    """A reader, and whoever comes after a crash, finds all of it or what was there before."""
    aside = path.with_name(f"{uuid4().hex}{PARTIAL}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        path.unlink(missing_ok=True)  # nobody can tell whether it will be there
        raise
    finally:
        os.close(folder)


def _packed(adapter: Adapter) -> bytes:
    """A safetensors file whose weights begin at a multiple of ALIGNMENT."""
    spec, manifest = spec_json.dumps(adapter.spec), json.dumps(asdict(adapter.manifest))
    values: Any = adapter.weights.contiguous().view(torch.uint8).numpy()
    data = memoryview(values)
    facts = {
        "schema": SCHEMA,
        "spec": spec,
        "manifest": manifest,
        "sha256": _checksum(spec, manifest, data),
        "padding": "",
    }
    content: bytes = save({WEIGHTS: adapter.weights}, facts)
    facts["padding"] = " " * (-(len(content) - len(data)) % ALIGNMENT)  # the header itself comes in eights
    content = save({WEIGHTS: adapter.weights}, facts)
    assert (len(content) - len(data)) % ALIGNMENT == 0
    return content


def _checksum(spec: str, manifest: str, data: memoryview) -> str:
    digest = hashlib.sha256()
    for text in (spec, manifest):
        digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    digest.update(data)
    return digest.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder for this process; the system lets go of it when the process ends."""
    try:
        (folder / CONVERTED).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InvalidInput(f"disk_path {folder.name!r} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InvalidInput(f"disk_path {folder.name!r} is in use by another server; give each its own") from error
    return descriptor
