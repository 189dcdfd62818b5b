"""Bad input through the wire: a clear status each, the server goes on, and nothing leaks (the `app` fixture looks)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
import torch
from make_adapters import make_adapter, random_checkpoint

from adapterd import AsyncClient, Error, calls, predict_request
from adapterd.v1 import inference_pb2 as v1
from adapters_cache.formats.adapterhub import ADAPTER_FILES, write_checkpoint
from server.app import App
from server.core import BaseInfo

WEIGHTS, PICKLE = ADAPTER_FILES


def wrong_hidden_size(path: Path, base: BaseInfo) -> None:
    make_adapter(path, replace(base, hidden_size=16))


def wrong_model_type(path: Path, base: BaseInfo) -> None:
    make_adapter(path, replace(base, model_type="roberta"))


def wrong_fingerprint(path: Path, base: BaseInfo) -> None:
    make_adapter(path, replace(base, fingerprint="f" * 64))


def truncated_file(path: Path, base: BaseInfo) -> None:
    make_adapter(path, base)
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def missing_file(path: Path, base: BaseInfo) -> None:
    make_adapter(path, base)
    (path / WEIGHTS).unlink()


def weights_with_nan(path: Path, base: BaseInfo) -> None:
    checkpoint = random_checkpoint(base)
    next(iter(checkpoint.tensors.values())).view(-1)[3] = float("nan")
    write_checkpoint(path, checkpoint, base)


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.marker),)


def pickle_that_runs_code(path: Path, base: BaseInfo) -> None:
    make_adapter(path, base)
    (path / WEIGHTS).unlink()
    torch.save({"weight": RunsCode(path.parent.parent / "ran")}, path / PICKLE)


def config_nobody_knows(path: Path, base: BaseInfo) -> None:
    make_adapter(path, base)
    file = path / "adapter_config.json"
    content = json.loads(file.read_text())
    content["config"]["warp_drive"] = 9
    file.write_text(json.dumps(content))


BROKEN = {
    wrong_hidden_size: "WRONG_BASE",
    wrong_model_type: "WRONG_BASE",
    wrong_fingerprint: "WRONG_BASE",
    truncated_file: "MALFORMED_CHECKPOINT",
    missing_file: "MALFORMED_CHECKPOINT",
    weights_with_nan: "MALFORMED_CHECKPOINT",
    pickle_that_runs_code: "MALFORMED_CHECKPOINT",
    config_nobody_knows: "UNSUPPORTED_CONFIG",
}


async def failure(client: AsyncClient, adapter: str, text: str, **options: object) -> Error:
    with pytest.raises(Error) as caught:
        await client.predict(adapter, text, **options)  # type: ignore[arg-type]
    await still_serves(client)
    return caught.value


async def still_serves(client: AsyncClient) -> None:
    assert (await client.predict("intent", "fine", timeout=20)).results


@pytest.mark.parametrize(("break_it", "reason"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", ""))
async def test_a_broken_adapter_fails_its_own_requests_only(
    app: App,
    client: AsyncClient,
    adapters_path: Path,
    base_info: BaseInfo,
    break_it: Callable[[Path, BaseInfo], None],
    reason: str,
) -> None:
    break_it(adapters_path / "broken", base_info)
    with pytest.raises(Error) as caught:
        await client.load("broken")
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert str(adapters_path) not in caught.value.message
    outcomes = await client.predict_batch([predict_request(name, "x") for name in ("intent", "broken", "embed")])
    codes = [outcome.code if isinstance(outcome, Error) else None for outcome in outcomes]
    assert codes == [None, grpc.StatusCode.FAILED_PRECONDITION, None]
    assert (await client.get("broken")).error == caught.value.message
    assert not (adapters_path.parent / "ran").exists()


async def test_a_failed_reload_keeps_what_was_there(
    client: AsyncClient, adapters_path: Path, base_info: BaseInfo
) -> None:
    before = (await client.predict("embed", "x")).digest
    truncated_file(adapters_path / "embed", base_info)
    with pytest.raises(Error):
        await client.load("embed")
    assert (await client.predict("embed", "x")).digest == before


@pytest.mark.parametrize("name", ["missing", "../intent", "/etc", "intent/../embed", "a\x00b", "Ünïcode"])
async def test_unknown_adapter_is_not_found(client: AsyncClient, name: str) -> None:
    error = await failure(client, name, "x")
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")
    with pytest.raises(Error) as caught:
        await client.load(name)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("text", ["", "  ", "\n"])
async def test_empty_text_is_invalid(client: AsyncClient, text: str) -> None:
    assert (await failure(client, "intent", text)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_text_at_all_is_invalid(client: AsyncClient) -> None:
    with pytest.raises(Error) as caught:
        await client.predict("intent", [])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_text_over_the_limit_is_invalid_and_cut_on_request(client: AsyncClient) -> None:
    error = await failure(client, "intent", "x " * 100)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "102" in error.message and "40" in error.message
    result = (await client.predict("intent", "x " * 100, truncation="longest_first")).results[0]
    assert result.is_truncated and result.num_tokens == 40


@pytest.mark.parametrize("options", [{"top_k": 0}, {"threshold": 1.5}, {"threshold": float("nan")}])
async def test_parameters_outside_their_range_are_invalid(client: AsyncClient, options: dict[str, object]) -> None:
    assert (await failure(client, "intent", "x", **options)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_token_ids_the_base_does_not_have_are_invalid(client: AsyncClient) -> None:
    for tokens in ([70], [-1], []):
        with pytest.raises(Error) as caught:
            await client.predict("intent", tokens=[tokens])
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_ten_megabytes_are_refused(app: App, client: AsyncClient) -> None:
    async with AsyncClient(f"127.0.0.1:{app.grpc_port}", max_retries=0, max_message_bytes=1 << 30) as bold:
        for sender in (bold, client):  # by the server, and before they are sent
            error = await failure(sender, "intent", "x" * (10 << 20))
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_megabyte_of_text_is_refused_and_cut_on_request(client: AsyncClient) -> None:
    error = await failure(client, "intent", "x " * (1 << 19))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "1048576 characters, the limit is 2560" in error.message
    result = (await client.predict("intent", "x " * (1 << 19), truncation="longest_first")).results[0]
    assert result.is_truncated and result.num_tokens == 40


async def test_more_answers_than_one_may_ask_for_are_invalid(client: AsyncClient) -> None:
    assert "top_k 101 exceeds 100" in (await failure(client, "spans", "x", top_k=101)).message


async def test_expired_deadline_never_reaches_the_device(app: App, client: AsyncClient) -> None:
    message = v1.PredictStreamRequest(id="late", request=predict_request("intent", "x"))
    message.timeout.FromNanoseconds(0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        call = channel.stream_stream(**calls.PREDICT_STREAM.arguments())(iter([message]))
        assert (await call.read()).error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    error = await failure(client, "embed", "x", timeout=1e-6)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b"adapterd_batch_samples_count 1.0" in app.metrics.render()  # that of `still_serves`


async def test_cancelled_calls_leave_nothing_behind(client: AsyncClient) -> None:
    for num_rounds in range(60):  # cancelled at another point each time
        call = asyncio.create_task(client.predict(("intent", "embed", "tags")[num_rounds % 3], ["x"] * 4))
        for _ in range(num_rounds):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        if num_rounds % 10 == 9:
            await client.unload("intent")
    await still_serves(client)


async def test_a_stream_broken_off_half_way_leaves_nothing_behind(app: App, client: AsyncClient) -> None:
    for num_read in (0, 1, 5):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
            call = channel.stream_stream(**calls.PREDICT_STREAM.arguments())()
            for i in range(30):
                name = ("intent", "embed", "tags")[i % 3]
                await call.write(v1.PredictStreamRequest(id=str(i), request=predict_request(name, "x")))
            for _ in range(num_read):
                assert (await call.read()).response.digest
    await still_serves(client)


async def test_garbage_in_a_stream_ends_it_with_a_clear_status(app: App, client: AsyncClient) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        good = v1.PredictStreamRequest(id="1", request=predict_request("intent", "x")).SerializeToString()
        call = channel.stream_stream("/adapterd.v1.Inference/PredictStream")(iter([good, b"\xff\xff\xff", good]))
        assert v1.PredictStreamResponse.FromString(await call.read()).response.digest
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await still_serves(client)
