"""kill -9 at any moment of conversion, download and index writes: what is served afterwards is whole, and all of it."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path

import converter
import pytest
import torch
from make_adapters import HEADS, make_adapter

from adapters_cache.build import build_adapter
from adapters_cache.sharing.artefact import describe
from adapters_cache.sharing.folder import FolderRegistry
from server.core import Adapter

NUM = 6
CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> Iterator[None]:
    CONTEXT.set_forkserver_preload(["converter"])
    yield


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Adapter]:
    """Every adapter as it should be served: half in a folder, half in a registry."""
    found, registry = {}, FolderRegistry(str(tmp_path / "registry"))
    for seed in range(NUM):
        name, is_shared = f"a{seed}", seed % 2 == 1
        place = tmp_path / ("made" if is_shared else "adapters") / name
        method = "seq_bn[reduction_factor=2]" if seed < 4 else "lora"
        checkpoint = make_adapter(place, converter.BASE, config=method, seed=seed, head=HEADS[seed % len(HEADS)])
        found[name] = build_adapter(checkpoint, converter.BASE, torch.float32)
        if is_shared:
            registry.push(place, describe(place, name))
    return found


def kill_one(folder: Path, rng: random.Random) -> None:
    has_begun = CONTEXT.Event()
    process = CONTEXT.Process(target=converter.convert, args=(folder, has_begun), daemon=True)
    process.start()
    if rng.random() < 0.8:
        assert has_begun.wait(60)
    time.sleep(rng.random() * 0.2)
    process.kill()
    process.join()


async def divide(folder: Path) -> dict[str, int]:
    """Give an adapter two versions, pin it; percentages by digest. Only the index knows of either from now on."""
    place = folder / "adapters" / converter.KEPT
    make_adapter(place, converter.BASE, seed=90, head=HEADS[0])
    adapters = converter.make(folder)
    await adapters.start()
    (await adapters.ready(converter.KEPT)).release()
    make_adapter(place, converter.BASE, seed=91, head=HEADS[0])
    await adapters.load(converter.KEPT, 40)
    versions = (await adapters.pin(converter.KEPT, True)).versions
    await adapters.stop()
    return {version.digest: version.percent for version in versions}


async def check(folder: Path, wanted: dict[str, Adapter], shares: dict[str, int]) -> None:
    adapters = converter.make(folder)
    await adapters.start()
    try:
        kept = adapters.get(converter.KEPT)
        assert {version.digest: version.percent for version in kept.versions} == shares and kept.is_pinned
        assert adapters._disk is not None
        for digest in adapters._disk.digests():  # what is there before anything is read is whole
            found = adapters._disk.get(digest)
            assert found is not None
            if digest not in shares:
                [of_digest] = [adapter for adapter in wanted.values() if adapter.digest == digest]
                assert torch.equal(found.weights, of_digest.weights)
        assert all(digest in adapters._disk for digest in shares)
        for name, adapter in wanted.items():
            with await adapters.ready(name) as lease:
                assert lease.adapter is not None and lease.adapter.digest == adapter.digest
                assert torch.equal(lease.adapter.weights, adapter.weights) and lease.adapter.spec == adapter.spec
        adapters.check_integrity()
        adapters._disk.check_integrity()
    finally:
        await adapters.stop()


def run(num_kills: int, folder: Path, wanted: dict[str, Adapter]) -> None:
    rng, shares = random.Random(0), asyncio.run(divide(folder))
    assert sorted(shares.values()) == [40, 60]
    for _ in range(num_kills):
        kill_one(folder, rng)
        asyncio.run(check(folder, wanted, shares))


@pytest.mark.timeout(300)
def test_a_few_kills(tmp_path: Path, wanted: dict[str, Adapter]) -> None:
    run(6, tmp_path, wanted)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path: Path, wanted: dict[str, Adapter]) -> None:
    run(200, tmp_path, wanted)
