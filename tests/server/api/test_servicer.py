"""Inference over the wire, with a pipeline that the test writes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from wire import FakePipeline, make_reply, predict, predict_batch, predict_stream, request_of, serve_inference

from adapterd.v1 import inference_pb2 as v1
from server.api.answering import Answering
from server.api.servicer import InferenceServicer
from server.config import ApiConfig
from server.core import ANYONE, Reply, Request
from server.errors import AdapterNotFound, Overloaded
from server.metrics import Metrics


async def echo(request: Request) -> Reply:
    return make_reply(request)


async def test_reply_carries_adapter_digest_results_and_timings() -> None:
    async with serve_inference(echo) as channel:
        reply = await predict(channel)(request_of("a", "one", "two"))
    assert (reply.adapter, reply.digest) == ("a", "d1")
    assert [result.classification.labels[0].label for result in reply.results] == ["one", "two"]
    assert reply.results[0].batch.id == 7
    assert reply.timings.admit.ToMicroseconds() == 1000


async def test_deadline_of_the_call_reaches_the_request() -> None:
    seen: list[float | None] = []

    async def infer(request: Request) -> Reply:
        seen.append(request.deadline)
        return make_reply(request)

    async with serve_inference(infer) as channel:
        await predict(channel)(request_of("a", "x"), timeout=60)
        await predict(channel)(request_of("a", "x"))
    assert seen[0] is not None and seen[0] - time.monotonic() == pytest.approx(60, abs=20)
    assert seen[1] is None


async def test_overload_tells_when_to_come_back() -> None:
    async def infer(request: Request) -> Reply:
        raise Overloaded("queue is full", retry_after_s=0.25, limit="8")

    async with serve_inference(infer) as channel:
        error = await failure(predict(channel)(request_of("a", "x")))
    trailers = dict(error.trailing_metadata())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailers["grpc-retry-pushback-ms"] == "250"
    assert trailers["adapterd-reason"] == "OVERLOADED"
    status = rpc_status.status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(retry)
    assert (info.reason, info.domain, dict(info.metadata)) == ("OVERLOADED", "adapterd", {"limit": "8"})
    assert retry.retry_delay.ToMilliseconds() == 250


async def test_unexpected_error_shows_an_id_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def infer(request: Request) -> Reply:
        raise ValueError("secret in a path")

    async with serve_inference(infer) as channel:
        error = await failure(predict(channel)(request_of("a", "x")))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    error_id = error.details().split()[2].rstrip(";")
    assert error_id in caplog.text and "secret in a path" in caplog.text


async def test_bytes_that_are_no_message_are_invalid_argument() -> None:
    async with serve_inference(echo) as channel:
        error = await failure(channel.unary_unary("/adapterd.v1.Inference/Predict")(b"\xff\xff"))
        call = channel.stream_stream("/adapterd.v1.Inference/PredictStream")(iter([b"\xff\xff"]))
        stream_error = await failure(call.read())
        assert (await predict(channel)(request_of("a", "x"))).digest == "d1"
    assert error.code() is stream_error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "request_",
    [
        request_of("", "x"),
        request_of("n" * 300, "x"),
        request_of("a", "1", "2", "3", "4", "5"),
        v1.PredictRequest(adapter="a", inputs=[v1.Input()]),
        v1.PredictRequest(adapter="a", parameters=v1.Parameters(pooling=9)),  # type: ignore[arg-type]
        v1.PredictRequest(adapter="a", parameters=v1.Parameters(truncation=9)),  # type: ignore[arg-type]
    ],
    ids=["no adapter", "long name", "too many inputs", "empty input", "unknown pooling", "unknown truncation"],
)
async def test_what_is_no_request_is_invalid_argument(request_: v1.PredictRequest) -> None:
    async with serve_inference(echo) as channel:
        error = await failure(predict(channel)(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(error.trailing_metadata())["adapterd-reason"] == "INVALID_INPUT"


async def test_batch_answers_each_request_in_order_and_by_itself() -> None:
    async def infer(request: Request) -> Reply:
        if request.adapter == "missing":
            raise AdapterNotFound("no adapter named 'missing'")
        if request.adapter == "broken":
            raise RuntimeError("a bug")
        return make_reply(request)

    names = ["a", "missing", "", "broken", "b"]
    batch = v1.PredictBatchRequest(requests=[request_of(name, "x") for name in names])
    async with serve_inference(infer) as channel:
        reply = await predict_batch(channel)(batch)
    codes = [outcome.error.code for outcome in reply.outcomes]
    assert codes == [0, 5, 3, 13, 0]
    assert [outcome.response.adapter for outcome in reply.outcomes] == ["a", "", "", "", "b"]
    assert reply.outcomes[1].error.reason == "ADAPTER_NOT_FOUND"


@pytest.mark.parametrize("num_requests", [0, 9])
async def test_batch_outside_its_limits_is_refused(num_requests: int) -> None:
    batch = v1.PredictBatchRequest(requests=[request_of("a", "x")] * num_requests)
    async with serve_inference(echo) as channel:
        error = await failure(predict_batch(channel)(batch))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_stream_replies_as_requests_finish() -> None:
    release_first = asyncio.Event()

    async def infer(request: Request) -> Reply:
        if request.adapter == "slow":
            await release_first.wait()
        return make_reply(request)

    async with serve_inference(infer) as channel:
        call = predict_stream(channel)()
        await call.write(v1.PredictStreamRequest(id="1", request=request_of("slow", "x")))
        await call.write(v1.PredictStreamRequest(id="2", request=request_of("fast", "x")))
        assert (await call.read()).id == "2"
        release_first.set()
        assert (await call.read()).id == "1"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_failed_message_does_not_end_the_stream() -> None:
    messages = [
        v1.PredictStreamRequest(id="bad", request=request_of("", "x")),
        v1.PredictStreamRequest(id="good", request=request_of("a", "x")),
    ]
    async with serve_inference(echo) as channel:
        replies = {reply.id: reply async for reply in predict_stream(channel)(iter(messages))}
    assert replies["bad"].error.code == 3
    assert replies["good"].response.digest == "d1"


async def test_timeout_of_a_message_is_its_own_deadline() -> None:
    seen: dict[str, float] = {}

    async def infer(request: Request) -> Reply:
        assert request.deadline is not None
        seen[request.adapter] = request.deadline - time.monotonic()
        return make_reply(request)

    short = v1.PredictStreamRequest(request=request_of("short", "x"))
    short.timeout.FromMilliseconds(5000)
    messages = [short, v1.PredictStreamRequest(request=request_of("long", "x"))]
    async with serve_inference(infer) as channel:
        assert len([reply async for reply in predict_stream(channel)(iter(messages), timeout=60)]) == 2
    assert seen["short"] < 10 < seen["long"]


@pytest.mark.parametrize("rpc", ["unary", "batch", "stream"])
async def test_leaving_cancels_the_work(rpc: str) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def infer(request: Request) -> Reply:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return make_reply(request)

    async with serve_inference(infer) as channel:
        request = request_of("a", "x")
        call: Any
        if rpc == "unary":
            call = predict(channel)(request)
        elif rpc == "batch":
            call = predict_batch(channel)(v1.PredictBatchRequest(requests=[request]))
        else:
            call = predict_stream(channel)()
            await call.write(v1.PredictStreamRequest(id="1", request=request))
        await started.wait()
        call.cancel()
        await cancelled.wait()


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


class Call:
    """The part of a gRPC context that the servicer looks at."""

    def __init__(self, remaining_s: float | None) -> None:
        self._remaining_s = remaining_s

    def time_remaining(self) -> float | None:
        return self._remaining_s

    def invocation_metadata(self) -> None:
        return None


@pytest.mark.parametrize(
    ("remaining_s", "outcome"),
    [(0.0, "DEADLINE_EXCEEDED"), (0.01, "DEADLINE_EXCEEDED"), (60, "CANCELLED"), (None, "CANCELLED")],
)
async def test_a_cancelled_call_is_counted_by_its_cause(remaining_s: float | None, outcome: str) -> None:
    started = asyncio.Event()

    async def infer(request: Request) -> Reply:
        started.set()
        await asyncio.Event().wait()
        return make_reply(request)

    metrics = Metrics()
    answering = Answering(FakePipeline(infer), ApiConfig(), metrics)
    servicer = InferenceServicer(answering, 8, lambda context: ANYONE)
    call: Any = Call(remaining_s)
    task = asyncio.create_task(servicer.Predict(request_of("a", "x"), call, ANYONE))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert f'adapterd_requests_total{{method="Predict",outcome="{outcome}"}} 1.0'.encode() in metrics.render()


async def test_our_own_error_is_raised_as_it_is() -> None:
    async def infer(request: Request) -> Reply:
        raise AdapterNotFound("no such")

    call: Any = Call(None)
    with pytest.raises(AdapterNotFound) as caught:
        answering = Answering(FakePipeline(infer), ApiConfig(), Metrics())
        await InferenceServicer(answering, 8, lambda context: ANYONE).Predict(request_of("a", "x"), call, ANYONE)
    assert caught.value.__cause__ is None
