"""Both clients against a real gRPC server around a pipeline that the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from wire import make_reply, serve_inference_port

from adapterd import AsyncClient, Client, Error, predict_request
from server.core import Reply, Request, TextInput
from server.errors import AdapterNotFound, Overloaded


class Pipeline:
    """Answers with the texts; "missing" is not found; refuses the first `num_refusals` requests."""

    def __init__(self, num_refusals: int = 0) -> None:
        self.requests: list[Request] = []
        self.num_refusals = num_refusals

    async def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        if request.adapter == "missing":
            raise AdapterNotFound("no adapter is registered as 'missing'")
        if len(self.requests) <= self.num_refusals:
            raise Overloaded("no room", retry_after_s=0.01)
        return make_reply(request)


def labels(outcome: Any) -> list[str]:
    return [result.classification.labels[0].label for result in outcome.results]


async def call_both(port: int, **options: Any) -> AsyncIterator[Any]:
    """The sync client (each call in a thread), then the async one, behind one interface."""
    with Client(f"127.0.0.1:{port}", **options) as client:
        yield lambda method, *args, **kwargs: asyncio.to_thread(getattr(client, method), *args, **kwargs)
    async with AsyncClient(f"127.0.0.1:{port}", **options) as client_:
        yield lambda method, *args, **kwargs: getattr(client_, method)(*args, **kwargs)


async def test_predict_takes_one_text_or_many() -> None:
    pipeline = Pipeline()
    async with serve_inference_port(pipeline) as port:
        async for call in call_both(port):
            assert labels(await call("predict", "a", "one")) == ["one"]
            assert labels(await call("predict", "a", ["one", "two"], text_pair=["p", "q"])) == ["one", "two"]
    assert pipeline.requests[1] == pipeline.requests[3]
    assert pipeline.requests[1].inputs == (TextInput("one", "p"), TextInput("two", "q"))


async def test_errors_carry_code_reason_and_message() -> None:
    async with serve_inference_port(Pipeline()) as port:
        async for call in call_both(port):
            with pytest.raises(Error) as caught:
                await call("predict", "missing", "x")
            error = caught.value
            assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")
            assert error.message == "no adapter is registered as 'missing'" and error.retry_after_s is None


async def test_refusals_are_retried_and_others_are_not() -> None:
    pipeline = Pipeline(num_refusals=2)
    async with serve_inference_port(pipeline) as port:
        async for call in call_both(port):
            pipeline.requests.clear()
            assert labels(await call("predict", "a", "x")) == ["x"]
            assert len(pipeline.requests) == 3
            with pytest.raises(Error):
                await call("predict", "missing", "x")
            assert len(pipeline.requests) == 4


async def test_without_retries_a_refusal_says_when_to_come_back() -> None:
    async with serve_inference_port(Pipeline(num_refusals=100)) as port:
        async for call in call_both(port, max_retries=0):
            with pytest.raises(Error) as caught:
                await call("predict", "a", "x")
            assert caught.value.reason == "OVERLOADED" and caught.value.retry_after_s == 0.01


async def test_batch_gives_failures_in_their_place() -> None:
    requests = [predict_request(name, name) for name in ("a", "missing", "b")]
    async with serve_inference_port(Pipeline()) as port:
        async for call in call_both(port):
            first, second, third = await call("predict_batch", requests)
            assert (labels(first), labels(third)) == (["a"], ["b"])
            assert isinstance(second, Error) and second.code is grpc.StatusCode.NOT_FOUND


async def test_stream_pairs_ids_with_outcomes() -> None:
    items = [(name, predict_request(name, name)) for name in ("a", "missing", "b")]

    async def later() -> AsyncIterator[Any]:
        for item in items:
            await asyncio.sleep(0)
            yield item

    async with serve_inference_port(Pipeline()) as port:
        with Client(f"127.0.0.1:{port}") as client:
            outcomes = [await asyncio.to_thread(lambda: dict(client.predict_stream(items)))]
        async with AsyncClient(f"127.0.0.1:{port}") as client_:
            for source in (items, later()):
                outcomes.append({name: outcome async for name, outcome in client_.predict_stream(source)})
    for outcome in outcomes:
        assert (labels(outcome["a"]), labels(outcome["b"])) == (["a"], ["b"])
        assert isinstance(outcome["missing"], Error)


async def test_leaving_a_stream_ends_the_call() -> None:
    ended = asyncio.Event()

    async def infer(request: Request) -> Reply:
        if request.adapter == "slow":
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        return make_reply(request)

    items = [("1", predict_request("slow", "x")), ("2", predict_request("fast", "x"))]
    async with serve_inference_port(infer) as port, AsyncClient(f"127.0.0.1:{port}") as client:
        stream = client.predict_stream(items)
        assert (await anext(stream))[0] == "2"
        await stream.aclose()
        await ended.wait()


async def test_a_router_sees_the_adapter_in_the_metadata() -> None:
    seen = []

    async def infer(request: Request) -> Reply:
        return make_reply(request)

    def note(metadata: dict[str, str]) -> None:
        seen.append(metadata.get("x-adapter"))

    async with serve_inference_port(infer, note) as port:
        async for call in call_both(port):
            await call("predict", "sst2", "x")
            await call("predict", "füße\n", "x")  # no metadata value; the call must go through all the same
    assert seen == ["sst2", None] * 2


async def test_several_connections_take_calls_in_turn() -> None:
    peers = []

    async def infer(request: Request) -> Reply:
        return make_reply(request)

    def note(metadata: dict[str, str]) -> None:
        peers.append(metadata[":peer"])

    async with serve_inference_port(infer, note) as port:
        async with AsyncClient(f"127.0.0.1:{port}", connections=3) as client:
            for _ in range(6):
                await client.predict("a", "x")
        assert len(set(peers)) == 3 and peers[:3] == peers[3:]
    with pytest.raises(ValueError, match="connections 0"):
        Client(connections=0)


def test_as_many_pairs_as_texts_are_required() -> None:
    with pytest.raises(ValueError, match="2 texts and 1 text_pairs"):
        predict_request("a", ["x", "y"], text_pair="z")


def test_a_request_holds_heads_layers_and_choices() -> None:
    message = predict_request("Stack(de, ner)", ["q", "r"], heads="ner", skip_layers=[0], choices=["x", "y"])
    assert (list(message.heads), list(message.skip_layers)) == (["ner"], [0])
    assert [list(item.text.choices) for item in message.inputs] == [["x", "y"]] * 2
    with pytest.raises(ValueError, match="text_pair and choices"):
        predict_request("a", "q", text_pair="z", choices=["x"])


async def test_wait_ready_gives_up_when_nobody_listens() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Error) as caught:
            await client.wait_ready(timeout=0.1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


class Stopped(Exception):
    """What a caller's own code raises."""


async def test_an_error_of_the_items_reaches_the_caller_as_itself() -> None:
    def items() -> Iterator[Any]:
        yield "1", predict_request("a", "x")
        raise Stopped

    async def later() -> AsyncIterator[Any]:
        for item in items():
            yield item

    outcomes: list[Any] = []
    async with serve_inference_port(Pipeline()) as port:
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(Stopped):
            await asyncio.to_thread(lambda: outcomes.extend(client.predict_stream(items())))
        async with AsyncClient(f"127.0.0.1:{port}") as client_:
            for source in (items, later):
                with pytest.raises(Stopped):
                    async for outcome in client_.predict_stream(source()):
                        outcomes.append(outcome)
    assert [(item, labels(outcome)) for item, outcome in outcomes] == [("1", ["x"])] * 3


async def test_a_request_beyond_the_limit_is_not_sent() -> None:
    pipeline, big = Pipeline(), "x" * 2000
    async with serve_inference_port(pipeline) as port:
        with Client(f"127.0.0.1:{port}", max_message_bytes=1000) as client:
            too_large = "the request has 20.. bytes, the limit is 1000"
            with pytest.raises(Error, match=too_large) as caught:
                await asyncio.to_thread(client.predict, "a", big)
            with pytest.raises(Error, match=too_large):
                await asyncio.to_thread(lambda: list(client.predict_stream([("1", predict_request("a", big))])))
        async with AsyncClient(f"127.0.0.1:{port}") as client_:
            with pytest.raises(Error, match="the limit is 8388608"):
                await client_.predict("a", "x" * (8 << 20))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pipeline.requests == []
