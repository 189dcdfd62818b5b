"""Served samples are computed again and compared; what differs is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make_adapters import make_adapter

from adapterd import AsyncClient
from server.app import App
from server.config import ServerConfig
from server.core import BaseInfo, Tier


@pytest.fixture
def config(config: ServerConfig, adapters_path: Path, base_info: BaseInfo) -> ServerConfig:
    head = {"head_type": "classification", "num_labels": 3}
    make_adapter(adapters_path / "twin", base_info, config="seq_bn[reduction_factor=4]", head=head, seed=99)
    return replace(
        config,
        scheduler=replace(config.scheduler, canary_share=1.0),
        cache=replace(config.cache, compositions=("both = Parallel(intent, tags)",)),
    )


def count(app: App, outcome: str) -> float:
    lines = app.metrics.render().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if f'canaries_total{{outcome="{outcome}"}}' in line)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_what_is_served_is_what_it_gives_alone(app: App, client: AsyncClient) -> None:
    for number, name in enumerate(["intent", "embed", "tags", "spans", "Stack(embed, intent)", "both", "base"]):
        await asyncio.gather(*(client.predict(name, f"hello {i}") for i in range(4)))
        await until(lambda number=number: count(app, "same") > number)
    assert count(app, "different") == count(app, "failed") == 0


async def test_a_slot_with_another_adapters_weights_is_found_out(
    app: App, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    digest, other = [(await client.predict(name, "hello")).digest for name in ("intent", "twin")]
    await until(lambda: count(app, "same") > 0 and app.adapters.get("intent").tier is Tier.DEVICE)
    runner: Any = app.scheduler._run
    bank = runner.__self__._bank
    slots = {entry.adapter.digest: index for index, entry in app.adapters._residency._by_index.items()}
    bank._slots[slots[digest]] = bank._slots[slots[other]]
    with caplog.at_level(logging.CRITICAL):
        async with asyncio.timeout(20):
            while not count(app, "different"):
                await client.predict("intent", "hello")
    assert digest in caplog.text


async def test_nothing_is_left_behind_when_the_adapter_is_unloaded(app: App, client: AsyncClient) -> None:
    await client.predict("intent", "hello")
    freed = await client.unload("intent")
    assert freed.host_bytes_freed > 0
    await until(lambda: app.adapters.used_bytes == 0)
    app.adapters.check_integrity()
