from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeAdapters, FakeRun, FakeSlots, make_base, make_spec

from server import pipeline
from server.admission import Admission
from server.config import ApiConfig, SchedulerConfig
from server.core import ANYONE, BatchInfo, Embedding, Parameters, Regression, Request, Result, TokenInput
from server.engine import LocalEngine
from server.errors import AdapterNotFound, DeadlineExceeded, Internal, InvalidInput, Overloaded
from server.ledger import Held, Ledger
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.postprocess import MAX_ANSWERS
from server.primitives import Task
from server.scheduler.scheduler import Scheduler
from server.tenants import Tenants
from server.tokenizer import Tokenizer


class Bench:
    """The real pipeline with a fake cache before it and a fake runner behind it."""

    def __init__(self, **limits: int) -> None:
        self.metrics = Metrics()
        self.ledger = Ledger.local()
        self.admission = Admission(ApiConfig(**limits), self.metrics, make_base(), Tenants(), self.ledger)  # type: ignore[arg-type]
        self.tokenizer = Tokenizer(None, make_base(), 1)
        self.adapters = FakeAdapters()
        self.slots = FakeSlots()
        self.run = FakeRun()
        self.scheduler = Scheduler(SchedulerConfig(), self.slots.acquire, self.run, self.metrics)
        engine = LocalEngine(self.adapters, self.scheduler, self.metrics, make_base(fingerprint="base-digest"))
        self.pipeline = Pipeline(self.admission, self.tokenizer, engine, self.metrics)

    async def stop(self) -> None:
        """Nothing may be left of any request."""
        self.run.gate.set()
        await self.scheduler.stop()
        self.tokenizer.close()
        self.scheduler.check_integrity()
        assert self.admission.num_in_flight == 0
        assert self.ledger.held() == self.ledger.held(ANYONE.index) == Held(0, 0, 0)
        assert self.adapters.num_leased == 0
        assert self.slots.num_leased == 0
        assert b"adapterd_queue_samples 0.0" in self.metrics.render()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(max_in_flight=2)
    await bench.scheduler.start()
    yield bench
    await bench.stop()


def request(*sizes: int, adapter: str = "a", timeout_s: float | None = None) -> Request:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    inputs = tuple(TokenInput(tuple(range(1, size + 1))) for size in sizes)
    return Request(adapter, inputs, Parameters(), deadline)


async def test_results_come_in_input_order(bench: Bench) -> None:
    bench.adapters.specs["a"] = make_spec(Task.REGRESSION, ["value"])
    reply = await bench.pipeline.infer(request(3, 1, 2))
    assert [result.answer for result in reply.results] == [Regression((n,)) for n in (3.0, 1.0, 2.0)]
    assert [result.num_tokens for result in reply.results] == [3, 1, 2]


async def test_reply_carries_the_digest_that_answered(bench: Bench) -> None:
    assert (await bench.pipeline.infer(request(1))).digest == "digest-a"
    reply = await bench.pipeline.infer(request(1, adapter="base"))
    assert (reply.adapter, reply.digest) == ("base", "base-digest")
    assert isinstance(reply.results[0].answer, Embedding)
    assert reply.results[0].answer.values.dtype == np.float32


async def test_timings_cover_every_stage(bench: Bench) -> None:
    timings = (await bench.pipeline.infer(request(1, 2))).timings
    assert min(timings.admit_s, timings.tokenize_s, timings.ready_s) > 0
    assert (timings.queue_s, timings.compute_s) == (0.001, 0.002)


async def test_bad_input_is_refused_before_the_adapter_is_fetched(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="input 1 has 0 tokens"):
        await bench.pipeline.infer(request(1, 0))
    assert bench.adapters.leases == []


async def test_unknown_adapter_is_refused_before_anything_is_tokenized(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.tokenizer, "encode", None)
    bench.adapters.errors["x"] = AdapterNotFound("no adapter x")
    with pytest.raises(AdapterNotFound):
        await bench.pipeline.infer(request(1, adapter="x"))
    assert bench.run.batches == []


async def test_request_beyond_the_limit_is_refused(bench: Bench) -> None:
    bench.run.gate.clear()
    tasks = [asyncio.create_task(bench.pipeline.infer(request(1))) for _ in range(2)]
    await bench.run.started(1)
    with pytest.raises(Overloaded, match="limit is 2"):
        await bench.pipeline.infer(request(1))
    bench.run.gate.set()
    await asyncio.gather(*tasks)


async def test_first_failure_takes_the_other_inputs_back(bench: Bench) -> None:
    bench.run.error_of = lambda sample: Internal("bad") if sample.num_tokens == 1 else None
    with pytest.raises(Internal):
        await bench.pipeline.infer(request(1, 2, 3))


async def test_tokens_inside_are_a_guess_of_texts_until_the_tokenizer_has_counted(bench: Bench) -> None:
    bench.run.gate.clear()
    task = asyncio.create_task(bench.pipeline.infer(request(3, 7)))
    await bench.run.started(1)
    assert bench.ledger.held().tokens == 10
    bench.run.gate.set()
    await task
    assert bench.ledger.admitted(ANYONE.index) == (1, 10)


async def test_deadline_during_compute_ends_the_wait(bench: Bench) -> None:
    bench.run.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await bench.pipeline.infer(request(1, 2, timeout_s=0.02))
    assert bench.run.num_running == 1


async def test_deadline_while_the_adapter_is_fetched_is_counted_there(bench: Bench) -> None:
    bench.adapters.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await bench.pipeline.infer(request(1, timeout_s=0.02))
    assert b'adapterd_expired_total{stage="ready"} 1.0' in bench.metrics.render()
    assert bench.run.batches == []


async def test_cancelled_caller_is_not_answered_and_leaves_nothing(bench: Bench) -> None:
    bench.run.gate.clear()
    task = asyncio.create_task(bench.pipeline.infer(request(1, 2, timeout_s=60)))
    await bench.run.started(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.adapters.num_leased == 0


async def test_caller_cancelled_while_the_adapter_is_fetched_is_counted(bench: Bench) -> None:
    bench.adapters.gate.clear()
    task = asyncio.create_task(bench.pipeline.infer(request(1)))
    while not bench.admission.num_in_flight:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert b"adapterd_cancelled_total 1.0" in bench.metrics.render()


async def test_timeout_of_somebody_else_is_not_taken_for_the_deadline(bench: Bench) -> None:
    bench.run.error_of = lambda sample: None
    bench.adapters.errors["slow"] = TimeoutError("origin")  # type: ignore[assignment]
    with pytest.raises(TimeoutError, match="origin"):
        await bench.pipeline.infer(request(1, adapter="slow", timeout_s=60))


@pytest.mark.parametrize(("sizes", "is_inline"), [((3, 4), True), ((100, 200), False)])
async def test_long_results_are_shaped_off_the_event_loop(
    bench: Bench, sizes: tuple[int, ...], is_inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    def note(*_: object) -> Result:
        threads.add(threading.current_thread())
        return Result(Regression((0.0,)), 1, False, BatchInfo(1, 1, 1, 1))

    monkeypatch.setattr(pipeline, "shape", note)
    assert len((await bench.pipeline.infer(request(*sizes))).results) == len(sizes)
    assert (threads == {threading.current_thread()}) == is_inline


async def test_what_the_task_cannot_do_is_refused_before_compute(bench: Bench) -> None:
    bench.adapters.specs["a"] = make_spec(Task.QUESTION_ANSWERING, ["start", "end"])
    too_many = replace(request(3), parameters=Parameters(top_k=MAX_ANSWERS + 1))
    with pytest.raises(InvalidInput, match="top_k 101 exceeds 100"):
        await bench.pipeline.infer(too_many)
    assert bench.run.batches == [] and bench.adapters.num_leased == 0
