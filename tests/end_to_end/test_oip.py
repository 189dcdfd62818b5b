"""Triton's own client, unmodified, against the server, in a process that imports its stubs and ours."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import queue
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from make_adapters import make_adapter
from perf_analyzer import perf_analyzer
from tritonclient.utils import InferenceServerException

from adapterd import AsyncClient, predict_request
from server.app import App
from server.core import BaseInfo

TEXTS = ["one two three", "four five", "six"]


@pytest.fixture
async def oip(app: App) -> AsyncIterator[Any]:
    client = triton_aio.InferenceServerClient(f"127.0.0.1:{app.grpc_port}")
    yield client
    await client.close()


def texts(values: list[str], name: str = "text") -> Any:
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode() for value in values], np.object_))
    return tensor


def numbers(name: str, values: list[list[int]]) -> Any:
    array = np.array(values, np.int64)
    tensor = triton.InferInput(name, list(array.shape), "INT64")
    tensor.set_data_from_numpy(array)
    return tensor


async def refused(call: Any) -> str:
    """Status and message."""
    with pytest.raises(InferenceServerException) as caught:
        await call
    return f"{caught.value.status()} {caught.value.message()}"


async def test_server_and_models_tell_of_themselves(oip: Any) -> None:
    assert await oip.is_server_live() and await oip.is_server_ready()
    assert (await oip.get_server_metadata()).name == "adapterd"
    assert await oip.is_model_ready("intent") and await oip.is_model_ready("base")
    assert not await oip.is_model_ready("nobody")
    metadata = await oip.get_model_metadata("intent")
    assert [tensor.name for tensor in metadata.outputs] == ["labels", "scores", "logits", "result"]
    assert metadata.inputs[0].name == "text" and metadata.inputs[0].datatype == "BYTES"
    assert len(metadata.versions[0]) == 64
    assert await oip.is_model_ready("intent", metadata.versions[0])
    assert not await oip.is_model_ready("intent", "0" * 64)
    config = (await oip.get_model_config("embed")).config
    assert [output.name for output in config.output] == ["embedding", "logits", "result"]
    assert config.input[0].data_type == 13 and not config.input[0].optional and config.input[1].optional


async def test_infer_answers_what_predict_answers(oip: Any, client: AsyncClient) -> None:
    wanted = await client.predict("intent", TEXTS)
    answer = await oip.infer("intent", [texts(TEXTS)], request_id="7")
    response = answer.get_response()
    assert (response.id, response.model_version) == ("7", wanted.digest)
    labels, scores = answer.as_numpy("labels"), answer.as_numpy("scores")
    assert labels.shape == scores.shape == (3, 3)
    for row, result in enumerate(wanted.results):
        assert [label.decode() for label in labels[row]] == [item.label for item in result.classification.labels]
        assert scores[row] == pytest.approx([item.score for item in result.classification.labels], abs=1e-5)
    assert answer.as_numpy("logits") is None


@pytest.mark.parametrize(
    ("adapter", "output"), [("tags", "entities"), ("topics", "labels"), ("embed", "embedding"), ("base", "embedding")]
)
async def test_each_kind_of_answer_has_its_output(oip: Any, client: AsyncClient, adapter: str, output: str) -> None:
    wanted = await client.predict(adapter, TEXTS)
    answer = await oip.infer(adapter, [texts(TEXTS)])
    values = answer.as_numpy(output)
    assert len(values) == len(TEXTS)
    for row, result in zip(values, wanted.results, strict=True):
        if output == "embedding":
            assert row == pytest.approx(np.array(result.embedding.values), abs=1e-4)
        elif output == "entities":
            found = [(item["label"], item["start"], item["end"]) for item in json.loads(row)]
            assert found == [(item.label, item.start, item.end) for item in result.token_classification.entities]
        else:
            assert {label.decode() for label in row} - {""} == {item.label for item in result.multi_label.labels}


async def test_pairs_ids_masks_and_compositions(oip: Any, client: AsyncClient) -> None:
    answer = await oip.infer("spans", [texts(["what"]), texts(["one two three"], "text_pair")])
    [found] = json.loads(answer.as_numpy("answers")[0])
    assert found["text"] == "one two three"[found["start"] : found["end"]]

    ids = [[2, 7, 9, 3], [2, 8, 3, 0]]
    masked = await oip.infer(
        "embed", [numbers("input_ids", ids), numbers("attention_mask", [[1, 1, 1, 1], [1, 1, 1, 0]])]
    )
    alone = await client.predict("embed", tokens=[[2, 7, 9, 3], [2, 8, 3]])
    for row, result in zip(masked.as_numpy("embedding"), alone.results, strict=True):
        assert row == pytest.approx(np.array(result.embedding.values), abs=1e-4)

    both = await oip.infer("Parallel(intent, tags)", [texts(["one two"])])
    [result] = both.as_numpy("result")
    assert [part["head"] for part in json.loads(result)["parallel"]] == ["intent", "tags"]


async def test_requested_outputs_parameters_and_timeouts(oip: Any) -> None:
    wanted = [triton.InferRequestedOutput("logits"), triton.InferRequestedOutput("labels")]
    answer = await oip.infer(
        "intent", [texts(["one"])], outputs=wanted, priority=2, timeout=5_000_000, parameters={"top_k": 1}
    )
    assert answer.as_numpy("logits").shape == (1, 3) and answer.as_numpy("labels").shape == (1, 1)
    assert answer.as_numpy("scores") is None
    late = await refused(oip.infer("intent", [texts(["one"])], timeout=1))
    assert "DEADLINE_EXCEEDED" in late


async def test_what_is_wrong_is_said(oip: Any) -> None:
    assert "NOT_FOUND" in await refused(oip.infer("nobody", [texts(["one"])]))
    assert "logitz" in await refused(
        oip.infer("intent", [texts(["one"])], outputs=[triton.InferRequestedOutput("logitz")])
    )
    assert "either 'text' or 'input_ids'" in await refused(oip.infer("intent", [texts(["one"], "text_pair")]))
    assert "'top'" in await refused(oip.infer("intent", [texts(["one"])], parameters={"top": 1}))
    assert "sequences are not served" in await refused(oip.infer("intent", [texts(["one"])], sequence_id=5))
    assert "x-adapter" in await refused(oip.infer("intent", [texts(["one"])], headers={"x-adapter": "tags"}))
    assert "load parameters" in await refused(oip.load_model("intent", config="{}"))
    shared = await refused(oip.get_system_shared_memory_status())
    assert "UNIMPLEMENTED" in shared and "shared memory" in shared


async def test_a_stream_answers_each_request_and_its_failures(oip: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, name in enumerate(("intent", "nobody", "tags")):
            yield {"model_name": name, "inputs": [texts(["one two"])], "request_id": str(number)}

    answers, errors = {}, []
    async for result, error in oip.stream_infer(requests()):
        if error is None:
            answers[result.get_response().id] = result
        else:
            errors.append(error)
    assert set(answers) == {"0", "2"} and "nobody" in errors[0].message()
    assert answers["0"].as_numpy("labels").shape == (1, 3)


async def test_the_blocking_client_streams_too(app: App) -> None:
    def stream() -> list[str]:
        client = triton.InferenceServerClient(f"127.0.0.1:{app.grpc_port}")
        done: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: done.put((result, error)))
        for number in range(3):
            client.async_stream_infer("intent", [texts(["one"])], request_id=str(number))
        ids = []
        for _ in range(3):
            result, error = done.get(timeout=20)
            assert error is None
            ids.append(result.get_response().id)
        client.stop_stream()
        client.close()
        return sorted(ids)

    assert await asyncio.to_thread(stream) == ["0", "1", "2"]


async def test_repository_and_statistics(oip: Any, app: App) -> None:
    models = (await oip.get_model_repository_index()).models
    assert {model.name for model in models} >= {"base", "embed", "intent", "tags"}
    assert all(model.state == "READY" for model in models)
    await oip.infer("intent", [texts(TEXTS)])
    await oip.infer("intent", [texts(["one"])])
    [stats] = (await oip.get_inference_statistics("intent")).model_stats
    assert (stats.inference_count, stats.execution_count) == (4, 2)
    assert stats.inference_stats.success.count == 2 and stats.inference_stats.success.ns > 0
    assert 0 < stats.inference_stats.compute_infer.ns <= stats.inference_stats.success.ns
    [unused] = (await oip.get_inference_statistics("tags")).model_stats
    assert unused.execution_count == 0
    assert app.adapters.get("intent").host_bytes > 0
    await oip.unload_model("intent")
    assert app.adapters.get("intent").host_bytes == 0
    await oip.load_model("intent")
    assert app.adapters.get("intent").host_bytes > 0


async def test_a_version_has_to_answer_or_nothing_does(
    oip: Any, app: App, client: AsyncClient, base_info: BaseInfo
) -> None:
    old = (await client.predict("intent", "one")).digest
    answer = await oip.infer("intent", [texts(["one"])], model_version=old[:12])
    assert answer.get_response().model_version == old
    folder = app.config.cache.adapters[0] / "intent"
    make_adapter(folder, base_info, config="seq_bn[reduction_factor=4]", head={"head_type": "classification"}, seed=99)
    new = (await client.load("intent")).adapter.digest
    assert new != old
    assert "NOT_FOUND" in await refused(oip.infer("intent", [texts(["one"])], model_version=old))
    outcomes = await client.predict_batch(
        [predict_request("intent", "one", version=version) for version in (new, old, "xyz")]
    )
    assert outcomes[0].digest == new
    assert [outcome.reason for outcome in outcomes[1:]] == ["ADAPTER_NOT_FOUND", "INVALID_INPUT"]


async def test_reflection_knows_the_public_name(app: App) -> None:
    def look() -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert {"inference.GRPCInferenceService", "adapterd.v1.Inference"} <= set(database.get_services())
            database.FindFileContainingSymbol("adapterd.v1.Adapters")
            return database.FindFileContainingSymbol("inference.GRPCInferenceService")

    proto = await asyncio.to_thread(look)
    assert proto.package == "inference"
    method = next(method for method in proto.service[0].method if method.name == "ModelInfer")
    assert method.input_type == ".inference.ModelInferRequest"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_perf_analyzer_measures_the_server(app: App, protocol: str, tmp_path: Path) -> None:
    program, environment = await asyncio.to_thread(perf_analyzer)
    (tmp_path / "inputs.json").write_text(json.dumps({"data": [{"text": ["one two"]}, {"text": ["three"]}]}))
    port = {"grpc": app.grpc_port, "http": app.http_port}[protocol]
    options = ["-m", "intent", "-i", protocol, "-u", f"127.0.0.1:{port}", "--shape", "text:1", "-f", "report.csv"]
    options += ["--input-data", "inputs.json", "--measurement-mode", "count_windows", "-s", "999", "--max-trials", "10"]
    options += ["--measurement-request-count", "20", "--concurrency-range", "1:2"]
    process = await asyncio.create_subprocess_exec(
        program, *options, env={**os.environ, **environment}, cwd=tmp_path, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["Concurrency"]) for row in rows} == {1, 2}
    assert all(float(row["Inferences/Second"]) > 0 for row in rows)
