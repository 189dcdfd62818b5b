"""Every RPC through the wire, on the real server."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from make_adapters import make_adapter

from adapterd import AsyncClient, Error, predict_request
from adapterd.v1 import adapters_pb2, inference_pb2
from server.app import App
from server.config import ServerConfig
from server.core import BaseInfo

TASKS = {
    "embed": "embedding",
    "intent": "classification",
    "topics": "multi_label",
    "tags": "token_classification",
    "spans": "question_answering",
}


@pytest.mark.parametrize(("name", "task"), TASKS.items())
async def test_predict_answers_every_task(client: AsyncClient, name: str, task: str) -> None:
    pair = "some context" if name == "spans" else None
    reply = await client.predict(name, "a text", text_pair=pair, return_logits=True, return_tokens=True)
    (result,) = reply.results
    assert (reply.adapter, len(reply.digest)) == (name, 64)
    assert result.WhichOneof("result") == task
    assert result.num_tokens == len(result.tokens) > 5
    assert (result.batch.num_samples, result.batch.num_adapters) == (1, 1)
    assert reply.timings.compute.ToNanoseconds() > 0


async def test_the_base_answers_under_its_own_name(client: AsyncClient) -> None:
    reply = await client.predict("base", ["one", "two"], normalize=True)
    assert reply.digest == (await client.base()).fingerprint
    assert [len(result.embedding.values) for result in reply.results] == [32, 32]
    assert sum(value**2 for value in reply.results[0].embedding.values) == pytest.approx(1, abs=1e-5)


async def test_tokens_answer_as_their_text_does(client: AsyncClient) -> None:
    by_text = (await client.predict("intent", "abc", return_tokens=True, return_logits=True)).results[0]
    ids = [token.id for token in by_text.tokens]
    by_ids = (await client.predict("intent", tokens=[ids], return_logits=True)).results[0]
    assert list(by_ids.logits.values) == pytest.approx(list(by_text.logits.values), abs=1e-5)


def numbers_of(result: inference_pb2.Result) -> list[float]:
    return list(result.logits.values) or list(result.embedding.values)


async def test_batch_mixes_adapters_and_answers_as_each_alone(client: AsyncClient) -> None:
    requests = [predict_request(name, "a text", text_pair="a context", return_logits=True) for name in TASKS]
    alone = [await client.predict(name, "a text", text_pair="a context", return_logits=True) for name in TASKS]
    mixed = await client.predict_batch(requests)
    for name, one, other in zip(TASKS, mixed, alone, strict=True):
        assert not isinstance(one, Error) and (one.adapter, one.digest) == (name, other.digest)
        assert one.results[0].WhichOneof("result") == TASKS[name]
        assert numbers_of(one.results[0]) == pytest.approx(numbers_of(other.results[0]), abs=1e-5)
        assert len(numbers_of(one.results[0])) > 1


async def test_stream_answers_every_message_under_its_id(client: AsyncClient) -> None:
    names = list(TASKS) * 20
    items = ((str(i), predict_request(name, "a text", text_pair="b")) for i, name in enumerate(names))
    replies = {item: outcome async for item, outcome in client.predict_stream(items)}
    assert set(replies) == {str(i) for i in range(len(names))}
    for i, name in enumerate(names):
        outcome = replies[str(i)]
        assert not isinstance(outcome, Error) and outcome.adapter == name


async def test_list_and_get_tell_where_an_adapter_is(client: AsyncClient) -> None:
    assert [adapter.name async for adapter in client.list()] == sorted(TASKS)
    assert [adapter.name async for adapter in client.list("t")] == ["tags", "topics"]
    assert (await client.get("intent")).tier == adapters_pb2.TIER_ORIGIN
    reply = await client.predict("intent", "x")
    adapter = await client.get("intent")
    assert (adapter.digest, adapter.tier) == (reply.digest, adapters_pb2.TIER_DEVICE)
    assert (adapter.task, len(adapter.labels)) == (adapters_pb2.TASK_CLASSIFICATION, 3)
    assert adapter.device_bytes > 0 and adapter.host_bytes > 0


async def test_load_moves_the_name_and_unload_gives_all_back(
    client: AsyncClient, adapters_path: Path, base_info: BaseInfo
) -> None:
    before = (await client.predict("intent", "x")).digest
    make_adapter(adapters_path / "intent", base_info, head={"head_type": "classification"}, seed=99)
    loaded = await client.load("intent")
    assert loaded.previous_digest == before != loaded.adapter.digest
    assert (await client.predict("intent", "x")).digest == loaded.adapter.digest
    freed = await client.unload("intent")
    assert freed.host_bytes_freed > 0 and freed.device_bytes_freed > 0
    assert (await client.get("intent")).tier == adapters_pb2.TIER_ORIGIN
    assert (await client.predict("intent", "x")).digest == loaded.adapter.digest


async def test_a_new_folder_is_found_by_load(client: AsyncClient, adapters_path: Path, base_info: BaseInfo) -> None:
    make_adapter(adapters_path / "late", base_info, seed=5)
    assert (await client.load("late")).previous_digest == ""
    assert (await client.predict("late", "x")).adapter == "late"


async def test_pin_marks_an_adapter_and_lets_it_go(client: AsyncClient) -> None:
    assert (await client.pin("intent")).is_pinned
    assert not (await client.pin("intent", False)).is_pinned


async def test_a_pinned_adapter_survives_eviction_pressure(
    config: ServerConfig, adapters_path: Path, base_info: BaseInfo
) -> None:
    names = [f"n{seed}" for seed in range(6)]
    for seed, name in enumerate(names):
        make_adapter(adapters_path / name, base_info, seed=seed)
    async with running(config) as client:
        await client.predict("n0", "x")
        one = await client.get("n0")
    room = replace(config.cache, device_bytes=2 * one.device_bytes, host_bytes=3 * one.host_bytes)
    async with running(replace(config, cache=room)) as client:
        await client.pin("n0")
        for name in names * 2:
            await client.predict(name, "x")
        tiers = {name: (await client.get(name)).tier for name in names}
        assert tiers["n0"] == adapters_pb2.TIER_DEVICE
        assert adapters_pb2.TIER_ORIGIN in tiers.values()  # there was pressure on the host too
        await client.pin("n0", False)
        for name in names[1:]:
            await client.predict(name, "x")
        assert (await client.get("n0")).tier == adapters_pb2.TIER_ORIGIN


@asynccontextmanager
async def running(config: ServerConfig) -> AsyncIterator[AsyncClient]:
    app = App(config)
    await app.start()
    try:
        async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
            yield client
    finally:
        await app.stop()


async def test_health_and_reflection_answer(app: App) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "adapterd.v1.Inference", "adapterd.v1.Adapters"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        services = {service.name for service in (await call.read()).list_services_response.service}
    assert {"adapterd.v1.Inference", "adapterd.v1.Adapters", "grpc.health.v1.Health"} <= services


async def test_metrics_count_what_was_answered(app: App, client: AsyncClient) -> None:
    await client.predict("intent", "x")
    with pytest.raises(Error):
        await client.predict("missing", "x")
    text = await asyncio.to_thread(_get, f"http://127.0.0.1:{app.http_port}/metrics")
    assert 'adapterd_requests_total{method="Predict",outcome="OK"} 1.0' in text
    assert 'adapterd_requests_total{method="Predict",outcome="NOT_FOUND"} 1.0' in text
    assert "adapterd_batch_samples_count 1.0" in text
    assert 'base="tiny"' in text


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
