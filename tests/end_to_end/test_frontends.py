"""Front processes in front of one engine: the same answers as one process gives, and nothing lost when a part ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from conftest import GOOD
from make_adapters import make_adapter
from prometheus_client.parser import text_string_to_metric_families

from adapterd import AsyncClient, Error, calls, predict_request
from adapterd.v1 import inference_pb2 as v1
from server.app import App
from server.config import ApiConfig, CacheConfig, ModelConfig, SchedulerConfig, ServerConfig
from server.core import BaseInfo
from server.errors import InvalidInput
from server.fronts.front import PUSH_S
from server.ledger import Held, Ledger

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_FRONTS = 2
MAX_IN_FLIGHT = 16
HEADS = GOOD | {
    "choose": {"head_type": "multiple_choice"},
    "parse": {"head_type": "dependency_parsing", "num_labels": 4},
}
ANSWERED = {
    "embedding": predict_request("embed", ["one", "two"], normalize=True),
    "base": predict_request("base", "x", pooling="cls"),
    "classification": predict_request("intent", ["a b", "c"], top_k=2, return_logits=True, return_tokens=True),
    "multi-label": predict_request("topics", "a text", threshold=0.1),
    "tagging": predict_request("tags", "ab cd ef", return_tokens=True),
    "answers": predict_request("spans", "who", text_pair="he or she", top_k=3),
    "choices": predict_request("choose", "a", choices=["x", "y z"]),
    "words": predict_request("parse", "ab c def"),
    "tokens": predict_request("intent", tokens=[[2, 7, 8, 3]]),
    "stack": predict_request("Stack(embed, intent)", "a text"),
    "parallel": predict_request("Parallel(intent, topics)", "a text", return_logits=True),
    "split": predict_request("Split(embed, intent; 3, 3)", "abcd", heads="intent"),
    "other head": predict_request("intent", "x", heads="topics"),
    "skipped layers": predict_request("intent", "x", skip_layers=[0]),
    "truncated": predict_request("intent", "x" * 60, truncation="longest_first"),
}
REFUSED = {
    "unknown": predict_request("nobody", "x"),
    "unknown part": predict_request("Stack(intent, nobody)", "x"),
    "no expression": predict_request("Stack(intent", "x"),
    "empty": predict_request("intent", " "),
    "too long": predict_request("intent", "x" * 60),
    "bad id": predict_request("intent", tokens=[[2, 7000, 3]]),
    "needless choices": predict_request("intent", "a", choices=["x", "y"]),
    "no choices": predict_request("choose", "a"),
    "no such layer": predict_request("intent", "x", skip_layers=[9]),
    "no such head": predict_request("intent", "x", heads="nothing"),
    "wrong base": predict_request("foreign", "x"),
    "wrong split": predict_request("Split(embed, intent; 1, 1)", "abcd"),
    "bad parameter": predict_request("intent", "x", threshold=3.0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base_info: BaseInfo) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, head) in enumerate(HEADS.items()):
        make_adapter(folder / name, base_info, config="seq_bn[reduction_factor=4]", head=head, seed=seed)
    make_adapter(folder / "foreign", replace(base_info, hidden_size=48), config="seq_bn[reduction_factor=4]")
    return folder


@pytest.fixture(scope="module")
def module_config(base_path: Path, folder: Path) -> ServerConfig:
    api = ApiConfig(port=0, http_port=0, lame_duck_s=0, drain_timeout_s=10, max_in_flight=MAX_IN_FLIGHT)
    return ServerConfig(
        model=ModelConfig(base=str(base_path), device="cpu", num_threads=1),
        cache=CacheConfig(adapters=(folder,)),
        scheduler=SchedulerConfig(max_batch_tokens=1024),  # nothing to measure
        api=replace(api, frontends=NUM_FRONTS),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def several(module_config: ServerConfig) -> AsyncIterator[App]:
    """An engine with its fronts. Afterwards nothing may be left of any request, and no process."""
    app = App(module_config)
    await app.start()
    yield app
    async with asyncio.timeout(20):
        for status in app.adapters.list(limit=1000)[0]:
            await app.adapters.unload(status.name)  # waits for every lease
        app.adapters.check_integrity()
        app.scheduler.check_integrity()
        pids = app.fronts.pids.values()
        await app.stop()
    assert app.ledger.held() == Held(0, 0, 0)
    assert not [pid for pid in pids if is_alive(pid)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def single(module_config: ServerConfig) -> AsyncIterator[App]:
    app = App(replace(module_config, api=replace(module_config.api, frontends=0)))
    await app.start()
    yield app
    await app.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(several: App) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{several.grpc_port}", max_retries=0) as client:
        yield client


class Connections:
    """Clients with a connection each: which front a connection leads to is the kernel's choice."""

    def __init__(self, port: int, number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(number)]

    async def __aenter__(self) -> list[Callable[..., Any]]:
        return [channel.unary_unary(**calls.PREDICT.arguments()) for channel in self.channels]

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self.channels))


class Gate:
    """Holds every request that reaches the engine until `open`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._ready = app.adapters.ready
        self._opened = asyncio.Event()
        self.num_waiting = 0

    async def __aenter__(self) -> Gate:
        self._app.adapters.ready = self._gated  # type: ignore[method-assign]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._opened.set()
        self._app.adapters.ready = self._ready  # type: ignore[method-assign]

    def open(self) -> None:
        self._opened.set()

    async def _gated(self, name: str, key: str = "", version: str = "") -> Any:
        self.num_waiting += 1
        try:
            await self._opened.wait()
        finally:
            self.num_waiting -= 1
        return await self._ready(name, key, version)


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def scraped(app: App, name: str, **labels: str) -> float:
    """The sum of a series' samples that have these labels."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{app.http_port}/metrics", timeout=5).read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(s.value for s in samples if s.name == f"adapterd_{name}" and labels.items() <= s.labels.items())


async def outcome(app: App, request: v1.PredictRequest) -> v1.PredictResponse | tuple[object, ...]:
    """The answer without what no two answers share, or the error."""
    [reply] = await outcomes(app, [request])
    if isinstance(reply, Error):
        return reply.code, reply.reason, reply.message, reply.retry_after_s
    reply.ClearField("timings")
    for result in reply.results:
        for one in (result, *result.parallel):
            one.ClearField("batch")
    return reply


async def outcomes(app: App, requests: list[v1.PredictRequest]) -> list[v1.PredictResponse | Error]:
    async with AsyncClient(f"127.0.0.1:{app.grpc_port}", max_retries=0) as client:
        return await client.predict_batch(requests)


@pytest.mark.parametrize("kind", ANSWERED)
async def test_answers_are_those_of_one_process(several: App, single: App, kind: str) -> None:
    answer = await outcome(several, ANSWERED[kind])
    assert isinstance(answer, v1.PredictResponse), answer
    assert answer == await outcome(single, ANSWERED[kind])


@pytest.mark.parametrize("kind", REFUSED)
async def test_errors_are_those_of_one_process(several: App, single: App, kind: str) -> None:
    error = await outcome(several, REFUSED[kind])
    assert isinstance(error, tuple) and error == await outcome(single, REFUSED[kind])


async def test_a_failed_call_has_the_status_of_its_error(client: AsyncClient) -> None:
    for name, code in (("nobody", grpc.StatusCode.NOT_FOUND), ("foreign", grpc.StatusCode.FAILED_PRECONDITION)):
        with pytest.raises(Error) as caught:
            await client.predict(name, "x")
        assert caught.value.code is code


async def test_stream_and_administration_cross_the_border(client: AsyncClient) -> None:
    num = MAX_IN_FLIGHT  # more at a time may be refused
    items = ((str(i), predict_request(("intent", "nobody")[i % 2], "x")) for i in range(num))
    found = {name: outcome async for name, outcome in client.predict_stream(items)}
    assert [isinstance(found[str(i)], Error) for i in range(num)] == [False, True] * (num // 2)
    loaded = await client.load("topics")
    assert (await client.get("topics")).digest == loaded.adapter.digest
    assert (await client.pin("topics")).is_pinned
    assert not (await client.pin("topics", is_pinned=False)).is_pinned
    assert (await client.unload("topics")).host_bytes_freed > 0
    assert {adapter.name async for adapter in client.list()} == {*HEADS, "foreign"}
    with pytest.raises(Error, match="no adapter is registered"):
        await client.get("nobody")


async def test_fronts_do_without_torch(several: App) -> None:
    for pid in several.fronts.pids.values():
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "uvloop" in loaded and "torch" not in loaded


async def test_connections_reach_several_fronts_under_one_limit(several: App, client: AsyncClient) -> None:
    def counts() -> list[int]:
        fronts = (Ledger.open(several.ledger.fd, NUM_FRONTS, number) for number in range(NUM_FRONTS))
        return [front.own_requests for front in fronts]

    async with Gate(several) as gate, Connections(several.grpc_port, MAX_IN_FLIGHT) as predicts:
        waiting = [asyncio.ensure_future(predict(predict_request("intent", "x"))) for predict in predicts]
        await until(lambda: gate.num_waiting == MAX_IN_FLIGHT)
        assert min(counts()) > 0 and sum(counts()) == MAX_IN_FLIGHT
        with pytest.raises(Error, match=f"{MAX_IN_FLIGHT} requests are in flight") as caught:
            await client.predict("intent", "x")
        assert caught.value.reason == "OVERLOADED"
        gate.open()
        await asyncio.gather(*waiting)
    await until(lambda: sum(counts()) == 0)


async def test_a_caller_who_leaves_or_is_out_of_time_is_forgotten_by_the_engine(
    several: App, client: AsyncClient
) -> None:
    def num_dropped() -> float:
        """gRPC may take a call away a moment before the deadline: then it counts as cancelled."""
        return scraped(several, "expired_total", stage="ready") + scraped(several, "cancelled_total")

    before = num_dropped()
    async with Gate(several) as gate:
        leaving = asyncio.create_task(client.predict("intent", "x"))
        await until(lambda: gate.num_waiting == 1)
        leaving.cancel()
        await until(lambda: gate.num_waiting == 0)
        with pytest.raises(Error) as caught:
            await client.predict("intent", "x", timeout=0.2)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: gate.num_waiting == 0)
    assert num_dropped() == before + 2


async def test_metrics_of_all_processes_add_up(several: App) -> None:
    def answered() -> float:
        return scraped(several, "requests_total", method="Predict", outcome="OK")

    await asyncio.sleep(PUSH_S * 1.2)  # until all has been told that was counted so far
    before, batches = answered(), scraped(several, "batch_samples_sum")
    async with Connections(several.grpc_port, 8) as predicts:
        await asyncio.gather(*(predict(predict_request("intent", "x")) for predict in predicts))
    await until(lambda: answered() == before + 8)
    assert scraped(several, "batch_samples_sum") == batches + 8
    assert scraped(several, "request_duration_seconds_count", stage="compute") >= answered()
    assert scraped(several, "build_info") == 1


async def test_a_front_that_is_killed_is_replaced_and_the_others_go_on(several: App) -> None:
    restarts, known = scraped(several, "front_restarts_total"), several.fronts.pids

    def counts() -> list[int]:
        fronts = (Ledger.open(several.ledger.fd, NUM_FRONTS, number) for number in range(NUM_FRONTS))
        return [front.own_requests for front in fronts]

    async with Gate(several) as gate, Connections(several.grpc_port, 12) as predicts:
        waiting = [asyncio.ensure_future(predict(predict_request("intent", "x"))) for predict in predicts]
        await until(lambda: gate.num_waiting == 12)
        num_lost = counts()[0]
        assert 0 < num_lost < 12
        os.kill(known[0], signal.SIGKILL)
        await until(lambda: gate.num_waiting == 12 - num_lost)  # nobody waits for those of the front that is gone
        gate.open()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        codes = [error.code() for error in results if isinstance(error, grpc.aio.AioRpcError)]
        assert codes == [grpc.StatusCode.UNAVAILABLE] * num_lost
    await until(lambda: len(several.fronts.pids) == NUM_FRONTS and several.fronts.pids != known, 30)
    assert known[1] == several.fronts.pids[1] and counts() == [0, 0]
    assert scraped(several, "front_restarts_total") == restarts + 1
    async with Connections(several.grpc_port, 12) as predicts, Gate(several) as gate:
        waiting = [asyncio.ensure_future(predict(predict_request("intent", "x"))) for predict in predicts]
        await until(lambda: gate.num_waiting == 12)
        assert min(counts()) > 0
        gate.open()
        await asyncio.gather(*waiting)


def children() -> set[int]:
    """Processes that this one started and that are not over."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


async def test_a_server_that_stops_while_a_front_is_replaced_leaves_none(module_config: ServerConfig) -> None:
    before = children()
    app = App(replace(module_config, api=replace(module_config.api, frontends=1)))
    await app.start()
    [pid] = app.fronts.pids.values()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not app.fronts.pids)
    await until(lambda: bool(children() - before - {pid}))  # the next one is on its way
    async with asyncio.timeout(10):
        await app.stop()
    assert children() == before


async def test_a_taken_port_is_an_error_that_names_it(several: App, single: App, module_config: ServerConfig) -> None:
    for num_fronts, taken in ((0, several.grpc_port), (2, several.grpc_port), (2, single.grpc_port)):
        second = App(replace(module_config, api=replace(module_config.api, port=taken, frontends=num_fronts)))
        with pytest.raises(InvalidInput, match=str(taken)):
            await second.start()


# the whole server as processes


@asynccontextmanager
async def server_process(base_path: Path, folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """In a process group of its own, as a shell would start it."""
    arguments = ["--base", str(base_path), "--device", "cpu", "--adapters", str(folder)]
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--http-port", "0", "--frontends", "2"]
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if found := re.search(rb"grpc_port=(\d+)", line):
                yield process, int(found[1])
                break
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_ctrl_c_answers_what_was_accepted_and_exits_0(base_path: Path, folder: Path) -> None:
    async with server_process(base_path, folder) as (process, port), AsyncExitStack() as stack:
        fronts = children_of(process.pid)
        assert len(fronts) == 2
        streams = []
        for number in range(8):
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.primary_user_agent", str(number))]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options))
            streams.append(channel.stream_stream(**calls.PREDICT_STREAM.arguments())())
        for stream in streams:
            for number in range(32):
                await stream.write(v1.PredictStreamRequest(id=str(number), request=predict_request("intent", "x")))
            await stream.done_writing()
        answers = [await stream.read() for stream in streams]
        os.killpg(process.pid, signal.SIGINT)
        for stream in streams:
            while (message := await stream.read()) is not grpc.aio.EOF:
                answers.append(message)
        assert len(answers) == 8 * 32 and all(message.HasField("response") for message in answers)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert not [pid for pid in fronts if is_alive(pid)]


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGKILL], pytest.param([signal.SIGINT, signal.SIGINT], marks=pytest.mark.slow)],
    ids=["killed", "second Ctrl-C"],
)
async def test_fronts_end_at_once_with_their_engine(
    base_path: Path, folder: Path, signals: list[signal.Signals]
) -> None:
    async with server_process(base_path, folder) as (process, _):
        fronts = children_of(process.pid)
        assert len(fronts) == 2
        for number in signals:
            process.send_signal(number)
            await asyncio.sleep(0.1)
        await until(lambda: not [pid for pid in fronts if is_alive(pid)], 5)
        assert await process.wait() in (-signal.SIGKILL, 128 + signal.SIGINT)
