"""The real server on free ports, on a small random base with random adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from make_adapters import make_adapter
from make_bases import save_base
from make_tokenizer import save_tokenizer

from adapterd import AsyncClient
from loadtest.children import served
from server.app import App
from server.config import ApiConfig, CacheConfig, ModelConfig, SchedulerConfig, ServerConfig
from server.core import BaseInfo
from server.model.base import load_base

GOOD = {
    "embed": None,
    "intent": {"head_type": "classification", "num_labels": 3},
    "topics": {"head_type": "multilabel_classification", "num_labels": 4},
    "tags": {"head_type": "tagging", "num_labels": 5},
    "spans": {"head_type": "question_answering"},
}


@pytest.fixture(scope="session")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_base(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="session")
def base_info(base_path: Path) -> BaseInfo:
    return load_base(ModelConfig(base=str(base_path), device="cpu")).info


@pytest.fixture
def adapters_path(tmp_path: Path, base_info: BaseInfo) -> Path:
    """A folder with one adapter per kind of head, which a test may add to or break."""
    for seed, (name, head) in enumerate(GOOD.items()):
        make_adapter(tmp_path / "adapters" / name, base_info, config="seq_bn[reduction_factor=4]", head=head, seed=seed)
    return tmp_path / "adapters"


@pytest.fixture
def config(base_path: Path, adapters_path: Path) -> ServerConfig:
    return ServerConfig(
        model=ModelConfig(base=str(base_path), device="cpu", num_threads=1),
        cache=CacheConfig(adapters=(adapters_path,)),
        scheduler=SchedulerConfig(max_batch_tokens=1024),  # nothing to measure
        api=ApiConfig(port=0, http_port=0, lame_duck_s=0, drain_timeout_s=10),
    )


@pytest.fixture
async def app(config: ServerConfig, adapters_path: Path) -> AsyncIterator[App]:
    """A running server. Afterwards nothing may be left: no request inside, no lease, no byte of any adapter."""
    app = App(config)
    await app.start()
    yield app
    async with asyncio.timeout(20):
        for status in app.adapters.list(limit=1000)[0]:
            await app.adapters.unload(status.name)  # waits for every lease
        app.adapters.check_integrity()
        app.scheduler.check_integrity()
        held = {status.name: status.host_bytes + status.device_bytes for status in app.adapters.list()[0]}
        await app.stop()
    assert set(held.values()) == {0}, held
    assert app.admission.num_in_flight == 0


@pytest.fixture
async def client(app: App) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{app.grpc_port}", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def console_url() -> Iterator[str]:
    """The HTTP port of a server with the demo adapters, in a process of its own."""
    with served("--adapters", str(Path(__file__).parents[2] / "examples" / "adapters")) as server:
        yield f"http://127.0.0.1:{server.http_port}/"
