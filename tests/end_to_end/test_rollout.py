"""Versions, prefetch and the disk tier over gRPC, in one process and with fronts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from make_adapters import make_adapter
from typer.testing import CliRunner

from adapterd import AsyncClient, Error
from adapterd.v1 import adapters_pb2 as v1
from server.app import App
from server.cli import app as command_line
from server.config import ServerConfig
from server.core import BaseInfo

HEAD = {"head_type": "classification", "num_labels": 3}


@pytest.fixture(params=[0, 2], ids=["alone", "fronts"])
def config(config: ServerConfig, adapters_path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> ServerConfig:
    return replace(
        config,
        cache=replace(config.cache, disk_path=str(tmp_path / "disk"), watch_s=0.05),
        api=replace(config.api, publish_folder=str(adapters_path), frontends=request.param),
    )


@pytest.fixture
def made(tmp_path: Path, base_info: BaseInfo) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        folder = tmp_path / f"version{seed}" / "reviews"
        make_adapter(folder, base_info, config="seq_bn[reduction_factor=4]", head=HEAD, seed=seed)
        return folder

    return make


async def answers(client: AsyncClient, number: int) -> list[str]:
    """Digests that answered, by the number of the user who asked."""
    asked = [client.predict("reviews", "a b c", sticky_key=f"user{i}") for i in range(number)]
    return [reply.digest for reply in await asyncio.gather(*asked)]


async def test_a_new_version_is_tried_promoted_and_taken_back(
    app: App, client: AsyncClient, made: Callable[[int], Path]
) -> None:
    old = (await client.publish(made(1))).adapter.digest
    reply = await client.publish(made(2), percent=25)
    assert reply.previous_digest == old == reply.adapter.digest
    [first, second] = reply.adapter.versions
    assert (first.digest, first.percent, second.percent) == (old, 75, 25)
    new = second.digest
    seen = await answers(client, 80)
    assert set(seen) == {old, new} and await answers(client, 80) == seen
    assert f'digest="{new[:12]}"' in app.metrics.render().decode()

    promoted = await client.set_traffic("reviews", {new[:8]: 100})
    assert promoted.digest == new and set(await answers(client, 10)) == {new}
    assert "adapterd_version_request_duration_seconds_count{" not in app.metrics.render().decode()
    server = f"127.0.0.1:{app.grpc_port}"
    shown = await asyncio.to_thread(
        CliRunner().invoke, command_line, ["traffic", "reviews", f"{old[:10]}=100", "--server", server]
    )
    assert shown.exit_code == 0 and old[:12] in shown.stdout and set(await answers(client, 10)) == {old}


@pytest.mark.parametrize(
    ("shares", "said"),
    [({}, "at least one version"), ({"0" * 64: 10}, "has no version"), ({"short": 10}, "has no version")],
)
async def test_what_cannot_be_split_is_refused(
    shares: dict[str, int], said: str, app: App, client: AsyncClient, made: Callable[[int], Path]
) -> None:
    before = (await client.publish(made(1))).adapter.digest
    with pytest.raises(Error, match=said):
        await client.set_traffic("reviews", shares)
    assert (await client.get("reviews")).digest == before


async def test_prefetch_and_listing_by_tier(app: App, client: AsyncClient) -> None:
    assert await client.prefetch(["intent", "tags"]) == 2
    async with asyncio.timeout(10):
        while {adapter.name async for adapter in client.list() if adapter.tier == v1.TIER_HOST} != {"intent", "tags"}:
            await asyncio.sleep(0.02)
    with pytest.raises(Error, match="no adapter is registered"):
        await client.prefetch(["intent", "missing"])
    unloaded = await client.unload("intent")
    assert unloaded.host_bytes_freed > 0 and unloaded.disk_bytes_freed > 0


async def test_a_folder_that_appears_is_served_and_one_that_goes_is_not(
    app: App, client: AsyncClient, adapters_path: Path, base_info: BaseInfo
) -> None:
    make_adapter(adapters_path / "late", base_info, config="seq_bn[reduction_factor=4]", head=HEAD, seed=9)
    async with asyncio.timeout(10):
        while True:
            try:
                await client.predict("late", "a b c")
                break
            except Error:
                await asyncio.sleep(0.05)
    shutil.rmtree(adapters_path / "late")
    async with asyncio.timeout(10):
        while "late" in [adapter.name async for adapter in client.list()]:
            await asyncio.sleep(0.05)
    with pytest.raises(Error, match="no adapter is registered as 'late'"):
        await client.predict("late", "a b c")


async def test_a_share_of_what_was_never_there_is_refused_and_one_of_what_was_not_loaded_is_not(
    app: App, client: AsyncClient, made: Callable[[int], Path], adapters_path: Path
) -> None:
    with pytest.raises(Error, match="publish without percent"):
        await client.publish(made(1), percent=10)
    assert not (adapters_path / "reviews").exists()
    old = (await client.publish(made(1))).adapter.digest
    await client.unload("reviews")
    versions = (await client.publish(made(2), percent=10)).adapter.versions
    assert [version.percent for version in versions] == [90, 10] and versions[0].digest == old
