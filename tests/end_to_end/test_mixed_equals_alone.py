"""Many adapters, little room, reloads and unloads under way: every answer is the one the adapter gives alone."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from make_adapters import make_variant
from make_bases import save_base

from adapterd import AsyncClient
from adapterd.v1 import inference_pb2 as v1
from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from server.app import App
from server.config import ApiConfig, CacheConfig, ModelConfig, SchedulerConfig, ServerConfig
from server.core import Adapter, Encoding, TokenInput
from server.model.base import Base, load_base
from server.model.slots import SlotBank
from server.verify import answer_alone

NUM_ADAPTERS, NUM_RESIDENT, NUM_CALLERS, NUM_TEXTS = 64, 8, 32, 12
TOLERANCE = {"atol": 3e-5, "rtol": 1e-4}
Question = tuple[Adapter, Encoding]


@pytest.mark.parametrize(
    "num_requests", [640, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
async def test_mixed_traffic_under_eviction_and_reload_equals_each_alone(num_requests: int, tmp_path: Path) -> None:
    base_path, folder = save_base(tmp_path / "base"), tmp_path / "adapters"
    base = await asyncio.to_thread(load_base, ModelConfig(base=str(base_path), device="cpu"))
    for index in range(NUM_ADAPTERS):
        make_variant(folder / f"a{index}", base.info, index)
    adapters = [build_adapter(read_checkpoint(path), base.info, base.dtype, base) for path in sorted(folder.iterdir())]
    wanted = await asyncio.to_thread(reference, base, adapters)
    bank = SlotBank(base.device, base.dtype)
    largest = max(bank.slot_bytes(adapter) for adapter in adapters)
    config = ServerConfig(
        model=ModelConfig(base=str(base_path), device="cpu"),
        cache=CacheConfig(adapters=(folder,), device_bytes=NUM_RESIDENT * largest, host_bytes=24 * largest),
        scheduler=SchedulerConfig(max_batch_tokens=256),
        api=ApiConfig(port=0, http_port=0, lame_duck_s=0.0),
    )
    app = App(config)
    await app.start()
    try:
        await converse(app, adapters, wanted, num_requests)
        app.adapters.check_integrity()
        async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
            for adapter in adapters:
                await client.unload(adapter.manifest.name)
            statuses = [status async for status in client.list()]
        assert len(statuses) == NUM_ADAPTERS
        assert all(status.host_bytes == status.device_bytes == 0 for status in statuses)
        app.adapters.check_integrity()
    finally:
        await app.stop()


def reference(base: Base, adapters: list[Adapter]) -> dict[tuple[str, int], np.ndarray]:
    """Each adapter's answer to each text, computed alone."""
    texts = [encoding_of(number, base) for number in range(NUM_TEXTS)]
    return {
        (adapter.manifest.name, number): output.values.reshape(-1)
        for adapter in adapters
        for number, output in enumerate(answer_alone(base, texts, adapter))
    }


def encoding_of(number: int, base: Base) -> Encoding:
    rng = random.Random(number)
    ids = tuple(rng.choices(range(5, base.info.vocab_size), k=rng.randint(1, 30)))
    return Encoding(ids, (0,) * len(ids), TokenInput(ids))


async def converse(app: App, adapters: list[Adapter], wanted: dict[tuple[str, int], np.ndarray], total: int) -> None:
    """`total` requests by concurrent callers while another keeps loading and unloading."""
    numbers = itertools.count()
    answered, rounds = 0, list[str]()
    base = await asyncio.to_thread(load_base, app.config.model)
    texts = [encoding_of(number, base).input_ids for number in range(NUM_TEXTS)]

    async def caller(client: AsyncClient, seed: int) -> None:
        nonlocal answered
        rng = random.Random(seed)
        while next(numbers) < total:
            adapter, number = rng.choice(adapters), rng.randrange(NUM_TEXTS)
            reply = await client.predict(adapter.manifest.name, tokens=[texts[number]], return_logits=True)
            assert reply.digest == adapter.digest
            got = values_of(reply.results[0])
            np.testing.assert_allclose(got, wanted[adapter.manifest.name, number], **TOLERANCE)
            answered += 1

    async def disturb(client: AsyncClient) -> None:
        rng = random.Random(1)
        while True:
            name = rng.choice(adapters).manifest.name
            await (client.load(name) if rng.random() < 0.5 else client.unload(name))
            rounds.append(name)

    async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        disturbance = asyncio.create_task(disturb(client))
        await asyncio.gather(*(caller(client, seed) for seed in range(NUM_CALLERS)))
        assert not disturbance.done() or disturbance.exception() is None
        disturbance.cancel()
    assert answered == total and rounds


def values_of(result: v1.Result) -> np.ndarray:
    if result.WhichOneof("result") == "embedding":
        return np.array(result.embedding.values)
    return np.array(result.logits.values)
