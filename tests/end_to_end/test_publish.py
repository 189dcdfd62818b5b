"""Publishing to a running server: verified, atomic, and only where it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from make_adapters import make_adapter

from adapterd import AsyncClient, Error
from adapterd.v1 import adapters_pb2 as v1
from server.app import App
from server.config import ServerConfig
from server.core import BaseInfo
from server.errors import InvalidInput

HEAD = {"head_type": "classification", "num_labels": 3}


@pytest.fixture
def config(config: ServerConfig, adapters_path: Path) -> ServerConfig:
    return replace(config, api=replace(config.api, publish_folder=str(adapters_path), max_publish_bytes=1 << 20))


@pytest.fixture
def made(tmp_path: Path, base_info: BaseInfo) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        folder = tmp_path / f"version{seed}" / "reviews"
        make_adapter(folder, base_info, config="seq_bn[reduction_factor=4]", head=HEAD, seed=seed)
        return folder

    return make


async def test_what_is_published_is_served(app: App, client: AsyncClient, made: Callable[[int], Path]) -> None:
    reply = await client.publish(made(1))
    assert (reply.adapter.name, reply.previous_digest) == ("reviews", "")
    answer = await client.predict("reviews", "a b c")
    assert answer.digest == reply.adapter.digest
    again = await client.publish(made(2))
    assert again.previous_digest == reply.adapter.digest
    assert (await client.predict("reviews", "a b c")).digest == again.adapter.digest


async def test_under_load_every_answer_is_of_the_old_digest_or_the_new_one(
    app: App, client: AsyncClient, made: Callable[[int], Path]
) -> None:
    digests = [(await client.publish(made(1))).adapter.digest]
    wanted = {digests[0]: await client.predict("reviews", "a b c", return_logits=True)}
    seen, is_over = [], False

    async def ask() -> None:
        while not is_over:
            seen.append(await client.predict("reviews", "a b c", return_logits=True))

    askers = [asyncio.create_task(ask()) for _ in range(8)]
    for seed in range(2, 8):
        reply = await client.publish(made(seed))
        digests.append(reply.adapter.digest)
        assert reply.previous_digest == digests[-2]
        wanted[digests[-1]] = await client.predict("reviews", "a b c", return_logits=True)
    is_over = True
    await asyncio.gather(*askers)  # none of them failed
    assert len({answer.digest for answer in seen}) > 1
    for answer in seen:
        assert answer.digest in wanted
        logits = wanted[answer.digest].results[0].logits.values
        assert list(answer.results[0].logits.values) == pytest.approx(list(logits), abs=1e-4)


async def test_what_is_damaged_leaves_the_name_where_it_was(
    app: App, client: AsyncClient, made: Callable[[int], Path], adapters_path: Path
) -> None:
    before = (await client.publish(made(1))).adapter.digest
    weights = made(2) / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(Error, match="adapter.safetensors is truncated"):
        await client.publish(weights.parent)
    assert (await client.predict("reviews", "a b c")).digest == before
    assert (await client.load("reviews")).adapter.digest == before
    with pytest.raises(Error):
        await client.publish(weights.parent, "other")
    assert sorted(path.name for path in adapters_path.iterdir() if "other" in path.name) == []


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("reviews", "../evil.json", "is not the path of a file"),
        ("reviews", "/etc/evil.json", "is not the path of a file"),
        ("reviews", "a/b/c.json", "is not the path of a file"),
        ("reviews", ".hidden", "is not the path of a file"),
        ("base", "adapter_config.json", "cannot be the name"),
        ("..", "adapter_config.json", "cannot be"),
        ("../up", "adapter_config.json", "cannot be"),
    ],
)
async def test_paths_and_names_stay_inside(name: str, path: str, said: str, app: App, adapters_path: Path) -> None:
    before = sorted(path.name for path in adapters_path.iterdir())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        call = channel.stream_unary("/adapterd.v1.Adapters/Publish", v1.PublishRequest.SerializeToString)
        with pytest.raises(Exception, match=said):
            await call(iter([v1.PublishRequest(name=name, path=path, content=b"{}")]))
    assert sorted(path.name for path in adapters_path.iterdir()) == before


async def test_what_is_too_large_is_refused(
    app: App, client: AsyncClient, made: Callable[[int], Path], adapters_path: Path
) -> None:
    folder = made(1)
    (folder / "big.txt").write_bytes(bytes(2 << 20))
    with pytest.raises(Error, match="1048576 bytes, the limit"):
        await client.publish(folder)
    assert not (adapters_path / "reviews").exists()


async def test_a_folder_to_publish_to_has_to_be_read_too(config: ServerConfig, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not the first of cache.adapters"):
        replace(config, api=replace(config.api, publish_folder=str(tmp_path)))


class TestWithoutAFolder:
    @pytest.fixture
    def config(self, config: ServerConfig) -> ServerConfig:
        return replace(config, api=replace(config.api, publish_folder=""))

    async def test_nothing_is_taken(self, app: App, client: AsyncClient, made: Callable[[int], Path]) -> None:
        with pytest.raises(Error, match="api.publish_folder=FOLDER"):
            await client.publish(made(1))
