"""The HTTP port: Triton's and OpenAI's own clients, unmodified, and what a stranger sends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import openai
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from adapterd import AsyncClient
from server.app import App
from server.config import ServerConfig
from server.tenants import digest_of

TEXTS = ["one two three", "four five"]
TENANTS = """
[acme]
credentials = ["sha256:{acme}"]
shared = ["intent", "base"]

[operator]
credentials = ["sha256:{operator}"]
adapters = ["*"]
can_observe = true
"""


def texts(values: list[str], *, is_binary: bool = True) -> Any:
    tensor = triton.InferInput("text", [len(values)], "BYTES")
    return tensor.set_data_from_numpy(np.array([value.encode() for value in values], np.object_), binary_data=is_binary)


async def with_triton(app: App, work: Callable[[Any], Any]) -> Any:
    def run() -> Any:
        with triton.InferenceServerClient(f"127.0.0.1:{app.http_port}") as client:
            return work(client)

    return await asyncio.to_thread(run)


def fetch(app: App, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """Status and body, JSON where it is any."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(f"http://127.0.0.1:{app.http_port}{path}", data, {"content-type": "application/json", **named})
    try:
        with urlopen(request, timeout=20) as reply:
            status, content = reply.status, reply.read()
    except HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
async def test_triton_over_http_answers_what_predict_answers(app: App, client: AsyncClient, is_binary: bool) -> None:
    wanted = await client.predict("intent", TEXTS)

    def work(http: Any) -> Any:
        outputs = [triton.InferRequestedOutput(name, binary_data=is_binary) for name in ("labels", "scores")]
        return http.infer("intent", [texts(TEXTS, is_binary=is_binary)], outputs=outputs, request_id="7")

    answer = await with_triton(app, work)
    assert answer.get_response()["model_version"] == wanted.digest and answer.get_response()["id"] == "7"
    labels, scores = answer.as_numpy("labels"), answer.as_numpy("scores")
    for row, result in enumerate(wanted.results):
        named = [label.decode() if isinstance(label, bytes) else label for label in labels[row]]
        assert named == [item.label for item in result.classification.labels]
        assert scores[row] == pytest.approx([item.score for item in result.classification.labels], abs=1e-5)


async def test_triton_over_http_reads_everything_else(app: App) -> None:
    def work(http: Any) -> None:
        assert http.is_server_live() and http.is_server_ready()
        assert http.is_model_ready("intent") and not http.is_model_ready("nobody")
        assert http.get_server_metadata()["name"] == "adapterd"
        metadata = http.get_model_metadata("embed")
        assert metadata["outputs"][0] == {"name": "embedding", "datatype": "FP32", "shape": [-1, 32]}
        assert http.is_model_ready("embed", metadata["versions"][0])
        assert http.get_model_config("embed")["input"][0]["data_type"] == "TYPE_STRING"
        assert "embed" in {model["name"] for model in http.get_model_repository_index()}
        http.infer("embed", [texts(TEXTS)])
        [stats] = http.get_inference_statistics("embed")["model_stats"]
        assert stats["inference_count"] == 2 and stats["inference_stats"]["success"]["ns"] > 0
        assert http.get_inference_statistics()["model_stats"]
        http.unload_model("embed")
        http.load_model("embed")
        with pytest.raises(InferenceServerException, match="nobody"):
            http.infer("nobody", [texts(TEXTS)])
        with pytest.raises(InferenceServerException, match="'top'"):
            http.infer("intent", [texts(TEXTS)], parameters={"top": 1})

    await with_triton(app, work)
    assert app.adapters.get("embed").host_bytes > 0


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_a_stock_openai_client_gets_embeddings(app: App, client: AsyncClient, encoding: Any) -> None:
    wanted = await client.predict("embed", TEXTS, normalize=True)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{app.http_port}/v1", api_key="none") as http:
        reply = await http.embeddings.create(model="embed", input=TEXTS, encoding_format=encoding)
        stock = await http.embeddings.create(model="base", input="one")
        names = [model.id async for model in http.models.list()]
        with pytest.raises(openai.NotFoundError, match="nobody"):
            await http.embeddings.create(model="nobody", input="one")
        with pytest.raises(openai.BadRequestError, match="answers classification"):
            await http.embeddings.create(model="intent", input="one")
        with pytest.raises(openai.BadRequestError, match="dimensions 5"):
            await http.embeddings.create(model="base", input="one", dimensions=5)
    for item, result in zip(reply.data, wanted.results, strict=True):
        embedding = item.embedding
        if isinstance(embedding, str):  # asked for as it travels
            import base64

            embedding = np.frombuffer(base64.b64decode(embedding), np.float32).tolist()
        assert embedding == pytest.approx(list(result.embedding.values), abs=1e-5)
    assert np.linalg.norm(stock.data[0].embedding) == pytest.approx(1.0, abs=1e-4)
    assert reply.usage.total_tokens == sum(result.num_tokens for result in wanted.results)
    assert {"base", "embed"} <= set(names)


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_models_are_listed_page_by_page(app: App, limit: int) -> None:
    found, after, has_more = [], "", True
    while has_more:
        _, page = await asyncio.to_thread(fetch, app, f"/v1/models?limit={limit}&after={after}")
        assert len(page["data"]) <= limit
        found += [model["id"] for model in page["data"]]
        after, has_more = page["last_id"], page["has_more"]
    _, whole = await asyncio.to_thread(fetch, app, "/v1/models")
    assert found == [model["id"] for model in whole["data"]] == ["base", "embed", "intent", "spans", "tags", "topics"]
    assert not whole["has_more"]


async def test_what_is_no_request_is_refused_with_its_reason(app: App) -> None:
    good = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
    infer = "/v2/models/intent/infer"
    for path, body, headers, status, part in [
        (infer, b"{", {}, 400, "no JSON"),
        (infer, b"[" * 100_000, {}, 400, "no JSON"),
        (infer, [], {}, 400, "not an object"),
        (infer, {"inputs": 3}, {}, 400, "not a list"),
        (infer, {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["x"]}]}, {}, 400, "says 2"),
        (infer, {"inputs": [{"name": "text", "shape": [1], "datatype": "FP16", "data": [1]}]}, {}, 400, "FP16"),
        (infer, good, {"Inference_Header_Content_Length": "999999"}, 400, "not a length"),
        (infer, good, {"Inference_Header_Content_Length": "²"}, 400, "not a length"),
        (infer, good, {"Origin": "http://evil.example"}, 403, "evil.example"),
        (infer, good, {"Host": "evil.example"}, 421, "evil.example"),
        ("/v1/embeddings", {"model": "base"}, {}, 400, "input"),
        ("/v1/embeddings", {"model": "base", "input": []}, {}, 400, "0 inputs"),
        ("/v1/embeddings", {"model": "base", "input": [[1, -5]]}, {}, 400, "-5"),
        (infer, good, {"Host": "["}, 421, "["),
        (infer, good, {"Origin": "http://["}, 403, "["),
        ("/v2/models/intent", None, {"Sec-Fetch-Site": "cross-site"}, 403, "another site"),
        (infer, {**good, "id": 3}, {}, 400, "'id'"),
        (infer, {**good, "id": "\ud800"}, {}, 400, "'id'"),
        (infer, {**good, "parameters": {"timeout": 10**400}}, {}, 400, "a day"),
        (infer, {**good, "parameters": {"threshold": 10**400}}, {}, 400, "cannot be sent"),
        (infer, {**good, "parameters": {"sticky_key": "\ud800"}}, {}, 400, "cannot be sent"),
        (infer, {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["\ud800"]}]}, {}, 400, "half"),
        (
            infer,
            {"inputs": [{"name": "text", "shape": [10**999], "datatype": "BYTES", "data": []}]},
            {},
            400,
            "no shape",
        ),
        (infer, {"inputs": [{"name": "text", "shape": [9999], "datatype": "BYTES", "data": []}]}, {}, 400, "limit is"),
        (infer, {**good, "outputs": [{"name": "labels", "parameters": {"classification": 2}}]}, {}, 400, "top_k"),
        (infer, good, {"X_Adapter": "tags"}, 400, "x-adapter"),
        ("/v1/embeddings", {"model": "base", "input": [None] * 100}, {}, 400, "neither a text"),
        ("/v1/embeddings", {"model": "base", "input": [None] * 1000}, {}, 400, "1000 inputs"),
        ("/v1/embeddings", {"model": "base", "input": [[1] * 5000]}, {}, 400, "5000 tokens"),
        ("/v1/embeddings", {"model": "base", "input": "\ud800"}, {}, 400, "neither a text"),
        ("/console/predict", {"adapter": "a", "text": "x", "choices": [None] * 99_999}, {}, 400, "choices"),
        ("/console/adapters?limit=0", None, {}, 400, "limit 0"),
        ("/console/adapters?tier=x", None, {}, 400, "TIER_DEVICE"),
        ("/console/..%2f..%2fapp.py", None, {}, 404, "Not Found"),
        ("/console/app.py", None, {}, 404, "no file"),
        ("/nowhere", None, {}, 404, "Not Found"),
        ("/v1/models?limit=10001", None, {}, 400, "10000"),
        ("/v2/models/Parallel(intent,tags)/infer", None, {}, 405, "POST"),
        ("/v2/models/intent/versions/abcdef12/infer", None, {}, 405, "POST"),
    ]:
        got, answer = await asyncio.to_thread(lambda p=path, b=body, h=headers: fetch(app, p, b, **h))
        assert (got, part in json.dumps(answer, ensure_ascii=False)) == (status, True), (path, got, answer)
    assert (await asyncio.to_thread(fetch, app, infer, good))[0] == 200


async def test_many_elements_are_refused_before_they_are_made(app: App) -> None:
    """Millions of empty texts fit into a message; nobody else may wait for them."""
    binary = {"binary_data_size": 7_600_000}
    body = {"inputs": [{"name": "text", "shape": [1_900_000], "datatype": "BYTES", "parameters": binary}]}
    head = json.dumps(body).encode()
    headers = {"Inference_Header_Content_Length": str(len(head))}
    started = time.monotonic()
    data = head + bytes(7_600_000)
    status, answer = await asyncio.to_thread(lambda: fetch(app, "/v2/models/intent/infer", data, **headers))
    assert status == 400 and "limit is 256" in answer["error"] and time.monotonic() - started < 3


async def test_a_connection_that_says_nothing_is_closed(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.protocol.QUIET_S", 0.1)
    monkeypatch.setattr("server.http.guard.BODY_S", 0.5)
    silent, nobody = await asyncio.open_connection("127.0.0.1", app.http_port)
    slow, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
    async with asyncio.timeout(20):
        assert await silent.read() == b""
        assert (await slow.readline()).split()[1] == b"408"
    for connection in (nobody, writer):
        connection.close()
        await connection.wait_closed()


@pytest.mark.parametrize("length", [b"content-length: 99999999", b"transfer-encoding: chunked"])
async def test_a_body_that_is_too_large_is_not_read_to_its_end(app: App, length: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    writer.write(b"POST /v2/models/intent/infer HTTP/1.1\r\nhost: localhost\r\n" + length + b"\r\n\r\n")
    if b"chunked" in length:
        for _ in range(9):
            writer.write(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
    async with asyncio.timeout(20):
        assert (await reader.readline()).split()[1] == b"413"
    writer.close()


async def test_a_caller_that_leaves_is_counted_and_computes_nothing(app: App) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    async with asyncio.timeout(20):
        hold = asyncio.Event()
        check = app.scheduler.submit

        async def slow(sample: Any) -> Any:
            hold.set()
            await asyncio.sleep(30)
            return await check(sample)

        app.scheduler.submit = slow  # type: ignore[method-assign]
        body = json.dumps({"model": "base", "input": "x"}).encode()
        writer.write(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            + f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await hold.wait()
        assert app.admission.num_in_flight == 1
        writer.close()
        while app.admission.num_in_flight:
            await asyncio.sleep(0.01)
        app.scheduler.submit = check  # type: ignore[method-assign]
    shown = app.metrics.render()
    assert b'adapterd_requests_total{method="embeddings",outcome="CANCELLED"} 1.0' in shown
    assert b"adapterd_batch_samples_count 0.0" in shown


async def test_metrics_documents_and_console_are_there(app: App, client: AsyncClient) -> None:
    await client.predict("intent", TEXTS)
    status, text = await asyncio.to_thread(fetch, app, "/metrics")
    assert status == 200 and b'adapterd_adapter_requests_total{adapter="intent",outcome="answered"} 1.0' in text
    status, schema = await asyncio.to_thread(fetch, app, "/openapi.json")
    assert status == 200 and "/v1/embeddings" in schema["paths"] and "/v2/models/{name}/infer" in schema["paths"]
    declared = {code for path in schema["paths"].values() for one in path.values() for code in one["responses"]}
    assert declared == {"200", "default"}  # what cannot be read is answered 400, not FastAPI's 422
    for path in ("/docs", "/docs/swagger-ui-bundle.js", "/", "/console/console.js"):
        assert (await asyncio.to_thread(fetch, app, path))[0] == 200, path
    _, state = await asyncio.to_thread(fetch, app, "/console/state")
    assert state["requests"] == {"OK": 1.0} and state["recent_batches"][0]["adapters"] == [["intent", 2]]
    assert state["busiest"][0]["adapter"] == "intent" and state["stages"]["total"]["count"] == 1
    _, page = await asyncio.to_thread(fetch, app, "/console/adapters?contains=nten&tier=TIER_DEVICE")
    assert [adapter["name"] for adapter in page["adapters"]] == ["intent"] and page["total"] == 1
    status, _ = await asyncio.to_thread(fetch, app, "/console/adapters/intent/card")
    assert status == 404
    folder = app.config.cache.adapters[0] / "intent"
    (folder / "README.md").write_text("# Intents")
    assert (await asyncio.to_thread(fetch, app, "/console/adapters/intent/card"))[1]["markdown"] == "# Intents"
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/passwd")
    assert (await asyncio.to_thread(fetch, app, "/console/adapters/intent/card"))[0] == 404
    _, answer = await asyncio.to_thread(fetch, app, "/console/predict", {"adapter": "intent", "text": "one"})
    assert len(answer["results"][0]["classification"]["labels"]) == 3
    await asyncio.to_thread(fetch, app, "/console/predict", {"adapter": "nobody", "text": "one"})
    _, state = await asyncio.to_thread(fetch, app, "/console/state")
    assert [(note["adapter"], note["code"]) for note in state["errors"]] == [("nobody", "NOT_FOUND")]


class TestTenants:
    @pytest.fixture(params=[0, 1], ids=["one process", "a front"])
    def config(self, config: ServerConfig, tmp_path: Path, request: pytest.FixtureRequest) -> ServerConfig:
        file = tmp_path / "tenants.toml"
        file.write_text(TENANTS.format(acme=digest_of("acme-token"), operator=digest_of("operator-token")))
        return replace(config, api=replace(config.api, tenants=str(file), frontends=request.param))

    async def test_what_is_not_a_tenants_own_stays_hidden(self, app: App) -> None:
        async def ask(path: str, body: object = None, token: str = "") -> tuple[int, Any]:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            return await asyncio.to_thread(lambda: fetch(app, path, body, **headers))

        good = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
        for path in ("/metrics", "/console/state", "/console/adapters", "/v2/models/intent", "/v1/models"):
            assert (await ask(path))[0] == 401, path
            assert (await ask(path, token="wrong"))[0] == 401, path
        for path in ("/metrics", "/console/state"):
            assert (await ask(path, token="acme-token"))[0] == 403, path
            assert (await ask(path, token="operator-token"))[0] == 200, path
        for path in ("/v2/health/live", "/v2/health/ready", "/"):
            assert (await ask(path))[0] == 200, path
        _, models = await ask("/v1/models", token="acme-token")
        assert [model["id"] for model in models["data"]] == ["base", "intent"]
        hidden, unknown = [await ask(f"/v2/models/{name}/infer", good, "acme-token") for name in ("tags", "never")]
        assert hidden[0] == unknown[0] == 404
        assert json.dumps(hidden[1]).replace("tags", "never") == json.dumps(unknown[1])
        assert (await ask("/v2/models/intent/infer", good, "acme-token"))[0] == 200
        assert (await ask("/v2/repository/models/intent/unload", {}, "acme-token"))[0] == 403
        _, shared = await ask("/v2/models/stats", token="acme-token")
        _, whole = await ask("/v2/models/stats", token="operator-token")
        assert shared["model_stats"] == [] and [one["name"] for one in whole["model_stats"]] == ["intent"]
        _, state = await ask("/console/state", token="operator-token")
        assert {tenant["name"]: tenant["answered"] for tenant in state["tenants"]} == {"acme": 1.0, "operator": 0.0}
