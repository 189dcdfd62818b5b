"""What test_kills.py runs in a process that it kills: converting, downloading and unloading without end."""

from __future__ import annotations

import asyncio
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from fakes import make_base

from adapters_cache.adapters import Adapters
from adapters_cache.residency import Residency
from server.config import CacheConfig
from server.core import Adapter
from server.errors import AdapterdError
from server.metrics import Metrics

KEPT = "kept"  # what lies on disk and in the index of this one only has to be there after every kill
BASE = make_base(hidden_size=32, num_layers=3)


class Slots:
    def slot_bytes(self, adapter: Adapter) -> int:
        return adapter.size_bytes

    def free(self, slot: int) -> None:
        pass


def make(folder: Path) -> Adapters:
    """Both kinds of origins, a disk tier and an index."""
    config = CacheConfig(
        adapters=(folder / "adapters",),
        registries=(str(folder / "registry"),),
        disk_path=str(folder / "disk"),
        watch_s=0.0,
    )
    metrics = Metrics()
    return Adapters(config, BASE, torch.float32, Residency(Slots(), 1 << 24, metrics), metrics)


def convert(folder: Path, has_begun: Event) -> None:
    torch.set_num_threads(1)
    asyncio.run(_convert(folder, has_begun))


async def _convert(folder: Path, has_begun: Event) -> None:
    adapters = make(folder)
    await adapters.start()
    names = [status.name for status in adapters.list(limit=1000)[0] if status.name != KEPT]
    has_begun.set()
    while True:
        await asyncio.gather(*(_turn(adapters, name) for name in names))


async def _turn(adapters: Adapters, name: str) -> None:
    try:
        (await adapters.ready(name)).release()
        await adapters.pin(name, True)
        await adapters.pin(name, False)
        await adapters.load(name, 50)
        await adapters.unload(name)
    except AdapterdError:
        pass
