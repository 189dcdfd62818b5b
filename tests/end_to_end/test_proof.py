"""Adapters proved against a plain forward pass: by the command line, and by a server at load."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from make_adapters import make_adapter, make_fusion
from test_command_line import adapterd

from adapterd import AsyncClient, Error
from server.app import App
from server.config import CacheConfig, ServerConfig
from server.core import BaseInfo


@pytest.fixture
def adapters_path(adapters_path: Path, base_info: BaseInfo) -> Path:
    make_adapter(adapters_path / "parse", base_info, head={"head_type": "dependency_parsing", "num_labels": 2}, seed=9)
    make_adapter(adapters_path / "fill", base_info, config="lora", head={"head_type": "masked_lm"}, seed=8)
    make_fusion(adapters_path / "intent,topics", base_info, ["intent", "topics"])
    return adapters_path


@pytest.fixture
def cache() -> CacheConfig:
    return CacheConfig(verify_at_load=True)


@pytest.fixture
async def proving(config: ServerConfig, cache: CacheConfig) -> AsyncIterator[App]:
    app = App(replace(config, cache=replace(cache, adapters=config.cache.adapters)))
    await app.start()
    yield app
    app.adapters.check_integrity()
    await app.stop()


async def test_every_adapter_passes_at_load_and_is_served(proving: App) -> None:
    async with AsyncClient(f"127.0.0.1:{proving.grpc_port}", max_retries=0) as client:
        for name in ("embed", "intent", "tags", "spans", "parse", "fill", "intent,topics"):
            await client.load(name)
        assert (await client.predict("Fuse(intent, topics)", "x", heads="intent")).results


@pytest.mark.parametrize("cache", [CacheConfig(verify_at_load=True, verify_tolerance=1e-12)])
async def test_an_adapter_beyond_the_tolerance_is_refused_with_both_numbers(proving: App) -> None:
    async with AsyncClient(f"127.0.0.1:{proving.grpc_port}", max_retries=0) as client:
        with pytest.raises(
            Error, match=r"'tags' differs from its plain forward pass by .+, the tolerance is 1e-12"
        ) as error:
            await client.predict("tags", "x")
        assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION
        status = await client.get("tags")
        assert "the tolerance is 1e-12" in status.error and status.host_bytes == status.device_bytes == 0


@pytest.mark.parametrize("name", ["tags", "parse", "Stack(embed, intent)", "Parallel(intent, topics)"])
def test_verify_proves_adapters_and_compositions(base_path: Path, adapters_path: Path, name: str) -> None:
    done = adapterd("verify", "--adapter", name, "--adapters", str(adapters_path), "--base", str(base_path))
    assert done.exit_code == 0, done.output
    assert "passed" in done.stdout


def test_verify_fails_beyond_the_tolerance(base_path: Path, adapters_path: Path) -> None:
    options = ("--adapters", str(adapters_path), "--base", str(base_path), "--tolerance", "1e-9")
    done = adapterd("verify", "--adapter", "tags", *options)
    assert done.exit_code == 1 and "differs from its plain forward pass" in done.stderr
    assert adapterd("verify", "--adapter", "missing", *options).exit_code == 2
    assert adapterd("verify", "--adapter", "tags").exit_code == 2
