"""What a million names ask of the folder that replicas share, and of each replica: measured on fewer, per name.

`python -m loadtest.scale_origin FOLDERS ORDERS` prints it as JSON: memory is told apart in a process of its own only.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from adapters_cache.orders import FILE, Order, OrderLog
from adapters_cache.origin import Origin
from adapters_cache.registry import Registry
from adapters_cache.watch import MOST_SHARE
from loadtest.children import memory_mib

NUM_FOLDERS, NUM_ORDERS = 20_000, 100_000
FILES = ("adapter_config.json", "adapter.safetensors", "head_config.json", "model_head.safetensors")
NAME, NUM_APPENDED = "tenant-", 100
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class OriginRow:
    """For each name.

    scan_s         to look at its folder
    record_bytes   of memory for what is known of an adapter that nobody asked for
    order_bytes    of the log; `order_memory`: of memory; `order_s`: to read it at start
    append_s       to write an order, synced to this machine's disk
    """

    scan_s: float
    record_bytes: float
    order_bytes: float
    order_memory: float
    order_s: float
    append_s: float

    def between_looks_s(self, num_adapters: int) -> float:
        """Seconds between two looks at so many folders: looking takes a small share of a core."""
        return self.scan_s * num_adapters / MOST_SHARE


def measure(num_folders: int = NUM_FOLDERS, num_orders: int = NUM_ORDERS) -> OriginRow:
    command = [sys.executable, "-m", "loadtest.scale_origin", str(num_folders), str(num_orders)]
    return OriginRow(**json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))


def _measure(num_folders: int, num_orders: int) -> OriginRow:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        scan_s, record_bytes = _scan(folder / "adapters", num_folders)
        (folder / "shared").mkdir()
        return OriginRow(scan_s, record_bytes, *_orders(folder / "shared", num_orders))


def _scan(folder: Path, number: int) -> tuple[float, float]:
    for i in range(number):
        path = folder / f"{NAME}{i:07}"
        path.mkdir(parents=True)
        for file in FILES:
            os.close(os.open(path / file, os.O_CREAT | os.O_WRONLY))
    origin = Origin([folder], max_adapter_bytes=MIB, max_concurrent_loads=1, load_timeout_s=600.0)
    before = memory_mib()
    started = time.monotonic()
    listing = asyncio.run(origin.scan(str(folder)))
    seconds = time.monotonic() - started
    registry = Registry()
    for name, listed in listing.adapters.items():
        registry.register(name, listed.source)
    return seconds / number, (memory_mib() - before) * MIB / number


def _orders(folder: Path, number: int) -> tuple[float, float, float, float]:
    log = OrderLog(folder)
    old, new = f"{1:064x}", f"{2:064x}"
    order = Order(NAME, digest=new, history=(old,), stamps={new: f"{3:024x}", old: f"{4:024x}"}, stamp=f"{3:024x}")
    started = time.monotonic()
    for i in range(NUM_APPENDED):
        with log.alone():
            log.append(replace(order, name=f"{NAME}{i}"))
    append_s = (time.monotonic() - started) / NUM_APPENDED
    last = (folder / FILE).read_bytes().splitlines()[-1]
    with (folder / FILE).open("ab") as file:  # as they would be written one by one
        for i in range(NUM_APPENDED, number):
            file.write(last.replace(f"{NAME}{NUM_APPENDED - 1}".encode(), f"{NAME}{i}".encode()) + b"\n")
    before, reader = memory_mib(), OrderLog(folder)
    started = time.monotonic()
    found = len(reader.read())
    seconds = time.monotonic() - started
    assert found == number
    size = (folder / FILE).stat().st_size
    return size / number, (memory_mib() - before) * MIB / number, seconds / number, append_s


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(*map(int, sys.argv[1:])))))
