"""Training on the resident base of a running server, beside its callers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from make_bases import save_lively_base
from make_tokenizer import save_tokenizer

from adapterd import AsyncClient, Client, Error
from adapterd.v1 import training_pb2 as v1
from server.app import App
from server.config import ModelConfig, ServerConfig
from server.core import BaseInfo
from server.model.base import load_base
from training.service import services

PLAN = dict(
    name="letters", task="text-classification", config="seq_bn[reduction_factor=4]", epochs=12, patience=12,
    learning_rate=1e-2, batch_size=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_lively_base(tmp_path_factory.mktemp("base") / "lively"))


@pytest.fixture(scope="module")
def base_info(base_path: Path) -> BaseInfo:
    return load_base(ModelConfig(base=str(base_path), device="cpu")).info


@pytest.fixture
async def app(config: ServerConfig) -> AsyncIterator[App]:
    app = App(config, services)
    await app.start()
    yield app
    await app.stop()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    rng, lines = random.Random(0), ["text,label"]
    for _ in range(96):
        is_a = rng.random() < 0.5
        words = ["a" if is_a else "b", *(rng.choice("cde") for _ in range(4))]
        lines.append(f"{' '.join(words)},{'first' if is_a else 'second'}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "rows.csv"


def train(app: App, rows: Path, into: Path, **changes: object) -> list[v1.TrainResponse]:
    """All answers; the adapter's files are in `into` afterwards."""
    events = []
    with Client(f"127.0.0.1:{app.grpc_port}", max_retries=0) as client:
        for event in client.train(v1.TrainPlan(**{**PLAN, **changes}), {"train": rows, "test": rows}):
            events.append(event)
            if event.HasField("file"):
                into.mkdir(parents=True, exist_ok=True)
                with (into / event.file.path).open("ab") as file:
                    file.write(event.file.content)
    return events


async def test_an_adapter_trained_beside_callers_is_served(
    app: App, client: AsyncClient, rows: Path, adapters_path: Path
) -> None:
    want = await client.predict("intent", "a b c", return_logits=True)
    seen, is_over = [], False

    async def ask() -> None:
        while not is_over:
            seen.append(await client.predict("intent", "a b c", return_logits=True))
            await asyncio.sleep(0.005)  # on one core, the training too has to get a turn

    asker = asyncio.create_task(ask())
    events = await asyncio.to_thread(train, app, rows, adapters_path / "letters")
    is_over = True
    await asker
    assert events[0].queued.num_before == 0
    assert [e.step.num_steps for e in events if e.HasField("step")][-1] == 12 * 6
    logits = list(want.results[0].logits.values)
    assert all(list(a.results[0].logits.values) == pytest.approx(logits, abs=1e-4) for a in seen) and seen
    await client.load("letters")
    labels = [
        (await client.predict("letters", text)).results[0].classification.labels[0].label
        for text in ("a c d e", "b e c d")
    ]
    assert labels == ["first", "second"]


async def test_a_caller_who_leaves_ends_its_training(app: App, client: AsyncClient, rows: Path, tmp_path: Path) -> None:
    def leave() -> None:
        with Client(f"127.0.0.1:{app.grpc_port}", max_retries=0) as own:
            for event in own.train(v1.TrainPlan(**{**PLAN, "epochs": 1000, "patience": 1000}), {"train": rows}):
                if event.HasField("step"):
                    return

    await asyncio.to_thread(leave)
    async with asyncio.timeout(30):  # the next one would wait for ever
        events = await asyncio.to_thread(train, app, rows, tmp_path / "next", epochs=1)
    assert events[-1].HasField("file")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "summarization"}, "not one of"),
        ({"config": "seq_bm"}, "seq_bm"),
        ({"name": "../up"}, "is not up to 128 letters"),
        ({"epochs": 0}, "epochs 0 must be at least 1"),
    ],
)
async def test_what_does_not_fit_is_refused(
    changes: dict[str, object], said: str, app: App, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(Error, match=said):
        await asyncio.to_thread(train, app, rows, tmp_path / "out", **changes)


class TestQuantized:
    @pytest.fixture
    def config(self, config: ServerConfig) -> ServerConfig:
        return replace(config, model=replace(config.model, quantization="int8"))

    async def test_it_says_why_it_does_not_train(self, app: App, rows: Path, tmp_path: Path) -> None:
        with pytest.raises(Error, match="base is quantized"):
            await asyncio.to_thread(train, app, rows, tmp_path / "out")
