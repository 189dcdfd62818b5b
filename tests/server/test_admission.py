from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import Admission
from server.core import Parameters, Request, TextInput
from server.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from server.metrics import Metrics

REQUEST = Request("a", (TextInput("hello"),))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


async def test_place_is_held_while_the_body_runs(metrics: Metrics) -> None:
    admission = Admission(1, metrics)
    async with admission.enter(REQUEST):
        assert admission.num_in_flight == 1
    assert admission.num_in_flight == 0


async def test_request_beyond_the_limit_is_refused_with_a_hint(metrics: Metrics) -> None:
    admission = Admission(1, metrics)
    async with admission.enter(REQUEST):
        with pytest.raises(Overloaded, match="limit is 1") as refusal:
            async with admission.enter(REQUEST):
                pass
        assert admission.num_in_flight == 1
    assert refusal.value.retry_after_s > 0


async def test_place_is_given_back_after_an_error(metrics: Metrics) -> None:
    admission = Admission(1, metrics)
    with pytest.raises(ZeroDivisionError):
        async with admission.enter(REQUEST):
            raise ZeroDivisionError
    async with admission.enter(REQUEST):
        pass


async def test_expired_request_never_enters(metrics: Metrics) -> None:
    admission = Admission(1, metrics)
    late = Request("a", REQUEST.inputs, deadline=time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        async with admission.enter(late):
            pytest.fail("entered")
    assert b'adapterd_expired_total{stage="admit"} 1.0' in metrics.render()


async def test_request_without_inputs_is_invalid(metrics: Metrics) -> None:
    with pytest.raises(InvalidInput, match="0 inputs"):
        async with Admission(1, metrics).enter(Request("a", ())):
            pass


@pytest.mark.parametrize(
    "parameters",
    [
        Parameters(top_k=0),
        Parameters(threshold=-0.1),
        Parameters(threshold=1.5),
        Parameters(threshold=float("nan")),
    ],
)
async def test_parameter_out_of_range_is_invalid(metrics: Metrics, parameters: Parameters) -> None:
    with pytest.raises(InvalidInput, match="top_k|threshold"):
        async with Admission(1, metrics).enter(Request("a", REQUEST.inputs, parameters)):
            pass


async def test_drain_refuses_newcomers_and_waits_for_the_others(metrics: Metrics) -> None:
    admission = Admission(2, metrics)
    async with admission.enter(REQUEST):
        draining = asyncio.create_task(admission.drain(60))
        await asyncio.wait({draining}, timeout=0)
        with pytest.raises(Unavailable):
            async with admission.enter(REQUEST):
                pass
        assert not draining.done()
    assert await draining is True


async def test_drain_gives_up_after_its_timeout(metrics: Metrics) -> None:
    admission = Admission(1, metrics)
    async with admission.enter(REQUEST):
        assert await admission.drain(0) is False


@settings(max_examples=50, deadline=None)
@given(fates=st.lists(st.sampled_from(["return", "raise", "cancel"]), max_size=20), limit=st.integers(1, 8))
def test_count_returns_to_zero_whatever_happens_inside(fates: list[str], limit: int) -> None:
    async def visit(admission: Admission, fate: str, gate: asyncio.Event) -> None:
        async with admission.enter(REQUEST):
            await gate.wait()
            if fate == "raise":
                raise ZeroDivisionError

    async def scenario() -> None:
        admission, gate = Admission(limit, Metrics()), asyncio.Event()
        tasks = [asyncio.create_task(visit(admission, fate, gate)) for fate in fates]
        await asyncio.sleep(0)
        assert admission.num_in_flight == min(limit, len(fates))
        for task, fate in zip(tasks, fates, strict=True):
            if fate == "cancel":
                task.cancel()
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert admission.num_in_flight == 0
        assert await admission.drain(0)

    asyncio.run(scenario())
