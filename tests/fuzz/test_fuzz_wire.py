"""Messages that no client of ours sends: each ends in an answer or a status that says whose fault it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import NAMES, UNANSWERED, Served, served

from adapterd.v1 import adapters_pb2 as admin
from adapterd.v1 import inference_pb2 as v1

TIMEOUT_S = 10.0
INFERENCE, ADAPTERS = "/adapterd.v1.Inference/", "/adapterd.v1.Adapters/"
METHODS = (
    INFERENCE + "Predict",
    INFERENCE + "PredictBatch",
    *(ADAPTERS + name for name in ("List", "Get", "Load", "Unload", "Pin", "Prefetch", "SetTraffic")),
)
STREAMS = (INFERENCE + "PredictStream", ADAPTERS + "Publish")
fuzzed = settings(
    derandomize=True,
    max_examples=60,
    deadline=None,  # each call has one
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

texts = st.text(max_size=30) | st.sampled_from(["", " ", "\0", "a fine text", "\u202e", "x" * 500, "\U0010ffff"])
words = st.sampled_from([*NAMES, "base", "nobody", "", "../intent", "Stack(intent, other)", "Parallel(intent, other)"])
compositions = st.sampled_from(
    [
        "Split(intent, other; 99999999999999999999999, 3)",
        "Average(intent, other; 1e308, 1e308)",
        "Average(intent, other; 1e-320, -1e-320)",
        "Average(intent, other; 1e300, 1e300, normalize=false)",
        "Fuse(intent, other; ../x)",
        "Parallel(" + ", ".join(["intent"] * 128) + ")",
        "Stack(" * 9 + "intent" + ")" * 9,
    ]
)
int32 = st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-2, 70)
floats = st.floats(width=32)


@st.composite
def parameters(draw: st.DrawFn) -> v1.Parameters:
    message = v1.Parameters(
        truncation=draw(st.integers(-1, 4) | int32),
        pooling=draw(st.integers(-1, 5) | int32),
        normalize=draw(st.booleans()),
        return_logits=draw(st.booleans()),
        return_tokens=draw(st.booleans()),
    )
    for field, values in (("top_k", _of(message, "top_k")), ("threshold", floats)):
        if draw(st.booleans()):
            setattr(message, field, draw(values))
    return message


def _of(message: Any, field: str) -> st.SearchStrategy[int]:
    """Whole numbers that the field can hold."""
    kind = message.DESCRIPTOR.fields_by_name[field].cpp_type
    bits = {1: (31, True), 2: (63, True), 3: (32, False), 4: (64, False)}[kind]
    most = (1 << bits[0]) - 1
    return st.integers(-most - 1 if bits[1] else 0, most) | st.integers(0, 5)


@st.composite
def inputs(draw: st.DrawFn) -> v1.Input:
    match draw(st.integers(0, 3)):
        case 0:
            return v1.Input(text=v1.Text(text=draw(texts)))
        case 1:
            message = v1.Text(text=draw(texts), choices=draw(st.lists(texts, max_size=3)))
            if draw(st.booleans()):
                message.text_pair = draw(texts)
            return v1.Input(text=message)
        case 2:
            ids = st.lists(_of(v1.Tokens(), "input_ids") | st.integers(0, 40), max_size=10)
            return v1.Input(tokens=v1.Tokens(input_ids=draw(ids), token_type_ids=draw(ids)))
    return v1.Input()


@st.composite
def predictions(draw: st.DrawFn) -> v1.PredictRequest:
    return v1.PredictRequest(
        adapter=draw(words | compositions | texts),
        inputs=draw(st.lists(inputs(), max_size=4)),
        parameters=draw(parameters()),
        heads=draw(st.lists(words, max_size=2)),
        skip_layers=draw(st.lists(_of(v1.PredictRequest(), "skip_layers"), max_size=2)),
        sticky_key=draw(texts),
        priority=draw(_of(v1.PredictRequest(), "priority")),
    )


batches = st.builds(lambda requests: v1.PredictBatchRequest(requests=requests), st.lists(predictions(), max_size=4))
listings = st.builds(
    lambda size, token, prefix: admin.ListRequest(page_size=size, page_token=token, name_prefix=prefix),
    _of(admin.ListRequest(), "page_size"),
    texts,
    texts | words,
)


@st.composite
def pieces(draw: st.DrawFn) -> admin.PublishRequest:
    path = st.sampled_from(["adapter_config.json", "head/head_config.json", "../out", "/etc/x", "a/b/c", ".", "\0", ""])
    message = admin.PublishRequest(
        name=draw(st.sampled_from(["sent", "intent", "base", "..", "a/b", ""]) | texts),
        path=draw(path | texts),
        content=draw(st.binary(max_size=40) | st.just(b"{}")),
    )
    if draw(st.booleans()):
        message.percent = draw(_of(message, "percent"))
    return message


@st.composite
def streamed(draw: st.DrawFn) -> bytes:
    message = v1.PredictStreamRequest(id=draw(texts), request=draw(predictions()))
    if draw(st.booleans()):
        message.timeout.seconds = draw(st.integers(-(1 << 63), (1 << 63) - 1))
        message.timeout.nanos = draw(int32)
    return message.SerializeToString()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("wire")
    with served(folder, publish_folder=str(folder / "adapters")) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def call(channel: grpc.Channel, method: str, data: bytes) -> bytes:
    """The answer; empty where there is a status instead."""
    try:
        answer: bytes = channel.unary_unary(method)(data, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        check(error, method, data)
        return b""
    return answer


def stream(channel: grpc.Channel, method: str, messages: Iterable[bytes]) -> None:
    messages = list(messages)
    try:
        for _ in channel.stream_stream(method)(iter(messages), timeout=TIMEOUT_S):
            pass
    except grpc.RpcError as error:
        check(error, method, messages)


def check(error: grpc.RpcError, method: str, sent: object) -> None:
    assert isinstance(error, grpc.Call)
    code, details = error.code(), str(error.details())
    assert code not in (*UNANSWERED, grpc.StatusCode.DEADLINE_EXCEEDED), (method, details, sent)
    assert "Traceback" not in details


@fuzzed
@given(method=st.sampled_from(METHODS), data=st.binary(max_size=60))
def test_random_bytes_end_in_a_status(channel: grpc.Channel, method: str, data: bytes) -> None:
    call(channel, method, data)


@fuzzed
@given(method=st.sampled_from(STREAMS), messages=st.lists(st.binary(max_size=40), max_size=4))
def test_streams_of_random_bytes_end_in_a_status(channel: grpc.Channel, method: str, messages: list[bytes]) -> None:
    stream(channel, method, messages)


@settings(fuzzed, max_examples=150)
@given(message=predictions())
def test_random_predictions_end_in_an_answer_or_a_status(channel: grpc.Channel, message: v1.PredictRequest) -> None:
    call(channel, INFERENCE + "Predict", message.SerializeToString())


@fuzzed
@given(message=batches)
def test_random_batches_have_one_outcome_for_each_request(
    channel: grpc.Channel, message: v1.PredictBatchRequest
) -> None:
    answer = v1.PredictBatchResponse.FromString(call(channel, INFERENCE + "PredictBatch", message.SerializeToString()))
    assert len(answer.outcomes) in (0, len(message.requests))
    codes = {outcome.error.code for outcome in answer.outcomes if outcome.HasField("error")}
    assert not codes & {code.value[0] for code in UNANSWERED}, answer


@fuzzed
@given(messages=st.lists(streamed(), max_size=4))
def test_random_streams_end_in_answers_or_a_status(channel: grpc.Channel, messages: list[bytes]) -> None:
    try:
        for data in channel.stream_stream(INFERENCE + "PredictStream")(iter(messages), timeout=TIMEOUT_S):
            outcome = v1.PredictStreamResponse.FromString(data)
            assert outcome.error.code not in {code.value[0] for code in UNANSWERED}, outcome
    except grpc.RpcError as error:
        check(error, "PredictStream", messages)


@fuzzed
@given(message=listings)
def test_random_listings_end_in_a_page_or_a_status(channel: grpc.Channel, message: admin.ListRequest) -> None:
    call(channel, ADAPTERS + "List", message.SerializeToString())


@fuzzed
@given(messages=st.lists(pieces(), max_size=4))
def test_random_files_are_never_published(
    server: Served, channel: grpc.Channel, messages: list[admin.PublishRequest]
) -> None:
    stream(channel, ADAPTERS + "Publish", [message.SerializeToString() for message in messages])
    assert {status.name for status in server.app.adapters.list()[0]} == set(NAMES)


def test_after_all_of_it_the_server_answers_as_before(server: Served) -> None:
    assert server.ask() == server.answer
