from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
from fakes import make_base
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import Admission
from server.config import ApiConfig
from server.core import ANYONE, Parameters, Request, Tenant, TextInput, TokenInput
from server.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from server.ledger import Held, Ledger, Pace
from server.metrics import Metrics
from server.tenants import Tenants

REQUEST = Request("a", (TextInput("hello"),))


def make_admission(
    metrics: Metrics, tenants: Sequence[Tenant] = (ANYONE,), ledger: Ledger | None = None, **limits: float
) -> Admission:
    config = ApiConfig(**limits)  # type: ignore[arg-type]
    return Admission(config, metrics, make_base(max_tokens=100), Tenants(tenants), ledger)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


async def test_place_is_held_while_the_body_runs(metrics: Metrics) -> None:
    admission = make_admission(metrics, max_in_flight=1)
    async with admission.enter(REQUEST):
        assert admission.num_in_flight == 1
    assert admission.num_in_flight == 0


async def test_request_beyond_the_limit_is_refused_with_a_hint(metrics: Metrics) -> None:
    admission = make_admission(metrics, max_in_flight=1)
    async with admission.enter(REQUEST):
        with pytest.raises(Overloaded, match="limit is 1") as refusal:
            async with admission.enter(REQUEST):
                pass
        assert admission.num_in_flight == 1
    assert refusal.value.retry_after_s > 0


async def test_place_is_given_back_after_an_error(metrics: Metrics) -> None:
    admission = make_admission(metrics, max_in_flight=1)
    with pytest.raises(ZeroDivisionError):
        async with admission.enter(REQUEST):
            raise ZeroDivisionError
    async with admission.enter(REQUEST):
        pass


async def test_expired_request_never_enters(metrics: Metrics) -> None:
    admission = make_admission(metrics, max_in_flight=1)
    late = Request("a", REQUEST.inputs, deadline=time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        async with admission.enter(late):
            pytest.fail("entered")
    assert b'adapterd_expired_total{stage="admit"} 1.0' in metrics.render()


async def test_request_without_inputs_is_invalid(metrics: Metrics) -> None:
    with pytest.raises(InvalidInput, match="0 inputs"):
        async with make_admission(metrics, max_in_flight=1).enter(Request("a", ())):
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
        async with make_admission(metrics, max_in_flight=1).enter(Request("a", REQUEST.inputs, parameters)):
            pass


async def test_drain_refuses_newcomers_and_waits_for_the_others(metrics: Metrics) -> None:
    admission = make_admission(metrics, max_in_flight=2)
    async with admission.enter(REQUEST):
        draining = asyncio.create_task(admission.drain(60))
        await asyncio.wait({draining}, timeout=0)
        with pytest.raises(Unavailable):
            async with admission.enter(REQUEST):
                pass
        assert not draining.done()
    assert await draining is True


async def test_drain_gives_up_after_its_timeout(metrics: Metrics) -> None:
    admission = make_admission(metrics, max_in_flight=1)
    async with admission.enter(REQUEST):
        assert await admission.drain(0) is False


@settings(max_examples=50)
@given(fates=st.lists(st.sampled_from(["return", "raise", "cancel"]), max_size=20), limit=st.integers(1, 8))
def test_count_returns_to_zero_whatever_happens_inside(fates: list[str], limit: int) -> None:
    async def visit(admission: Admission, fate: str, gate: asyncio.Event) -> None:
        async with admission.enter(REQUEST):
            await gate.wait()
            if fate == "raise":
                raise ZeroDivisionError

    async def scenario() -> None:
        admission, gate = make_admission(Metrics(), max_in_flight=limit), asyncio.Event()
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


A, B = (Tenant(name, ("*",)) for name in "ab")


def asking(tenant: Tenant = ANYONE, num_tokens: int = 10, size_bytes: int = 0, wait_s: float | None = None) -> Request:
    deadline = None if wait_s is None else time.monotonic() + wait_s
    tokens = (TokenInput(tuple(range(num_tokens))),)
    return Request("a", tokens, deadline=deadline, tenant=tenant, size_bytes=size_bytes)


async def admitted(admission: Admission, requests: Sequence[Request]) -> list[bool]:
    """Which of them come in, one after the other, with all before still inside."""
    outcomes = []
    async with AsyncExitStack() as inside:
        for request in requests:
            try:
                await inside.enter_async_context(admission.enter(request))
                outcomes.append(True)
            except Overloaded as error:
                assert error.retry_after_s > 0
                outcomes.append(False)
    return outcomes


def declared(*tenants: Tenant) -> tuple[Tenant, ...]:
    """With their places in the ledger."""
    return Tenants(tenants).all


@pytest.mark.parametrize("limits", [{"max_in_flight_tokens": 25}, {"max_in_flight_bytes": 250}])
async def test_tokens_and_bytes_inside_are_bounded_and_one_request_always_fits(
    metrics: Metrics, limits: dict[str, float]
) -> None:
    admission = make_admission(metrics, **limits)
    assert await admitted(admission, [asking(size_bytes=100)] * 3) == [True, True, False]
    assert await admitted(admission, [asking(num_tokens=90, size_bytes=900)] * 2) == [True, False]


async def test_texts_count_by_their_length_until_they_are_tokenized(metrics: Metrics) -> None:
    ledger = Ledger.local()
    admission = make_admission(metrics, ledger=ledger)
    texts = (TextInput("x" * 40), TextInput("x" * 8, "y" * 8), TextInput("x", choices=("y" * 4, "z" * 4)))
    async with admission.enter(Request("a", (*texts, TextInput("x" * 10_000)))) as place:
        assert ledger.held().tokens == 12 + 6 + 3 + 3 + 100
        place.correct(50)
        assert ledger.held() == ledger.held(1) == Held(1, 50, 0)
    assert ledger.held() == ledger.held(1) == Held(0, 0, 0)
    assert ledger.admitted(1) == (1, 50)


async def test_one_of_several_tenants_leaves_room_for_the_next(metrics: Metrics) -> None:
    a, b = tenants = declared(A, B)
    admission = make_admission(metrics, tenants, max_in_flight=50)
    outcomes = await admitted(admission, [asking(a)] * 60 + [asking(b)] * 5)
    assert 38 <= sum(outcomes[:60]) <= 42
    assert all(outcomes[60:])


async def test_a_tenant_alone_gets_the_whole(metrics: Metrics) -> None:
    assert sum(await admitted(make_admission(metrics, max_in_flight=50), [asking()] * 60)) == 50


async def test_a_tenants_own_limit_is_its_own(metrics: Metrics) -> None:
    a, b = tenants = declared(Tenant("a", max_in_flight=2), B)
    outcomes = await admitted(make_admission(metrics, tenants), [asking(a)] * 3 + [asking(b)] * 3)
    assert outcomes == [True, True, False, True, True, True]


@pytest.mark.parametrize("rates", [{"max_requests_per_s": 3.0}, {"max_tokens_per_s": 30.0}])
async def test_a_rate_is_kept_over_all_fronts(metrics: Metrics, rates: dict[str, float]) -> None:
    (a,) = tenants = declared(Tenant("a", **rates))  # type: ignore[arg-type]
    shared = Ledger.create(2)
    fronts = [make_admission(metrics, tenants, Ledger.open(shared.fd, 2, number)) for number in (0, 1)]
    outcomes = [(await admitted(fronts[i % 2], [asking(a)]))[0] for i in range(8)]
    assert outcomes == [True] * 3 + [False] * 5
    with pytest.raises(Overloaded, match="per_s") as refusal:
        async with fronts[0].enter(asking(a)):
            pass
    assert 0 < refusal.value.retry_after_s <= 1.1
    shared.close()


async def test_limits_are_of_all_fronts_together_and_a_dead_one_holds_nothing(metrics: Metrics) -> None:
    shared = Ledger.create(2)
    first, second = (
        make_admission(metrics, ledger=Ledger.open(shared.fd, 2, number), max_in_flight=3) for number in (0, 1)
    )
    async with first.enter(asking()), first.enter(asking()):
        assert await admitted(second, [asking()] * 2) == [True, False]
        shared.forget(0)
        assert await admitted(second, [asking()] * 4) == [True, True, True, False]
    shared.close()


async def test_work_that_waits_is_bounded_in_seconds_and_in_an_overload_by_what_keeps_the_device_busy(
    metrics: Metrics,
) -> None:
    ledger = Ledger.local()
    ledger.set_pace(Pace(tokens_per_s=100, weights=1.0, busy_tokens=40))
    admission = make_admission(metrics, ledger=ledger, max_queue_s=1.0)
    assert sum(await admitted(admission, [asking()] * 20)) == 10
    assert sum(await admitted(admission, [asking()] * 20)) == 4
    assert b'adapterd_refused_total{reason="queue"} 26.0' in metrics.render()


async def test_an_overload_is_of_the_tenant_that_makes_it(metrics: Metrics) -> None:
    ledger = Ledger.local()
    ledger.set_pace(Pace(tokens_per_s=1000, weights=2.0, busy_tokens=40))
    a, b = tenants = declared(A, B)
    ledger.refused(a.index)
    admission = make_admission(metrics, tenants, ledger)
    assert sum(await admitted(admission, [asking(a)] * 8)) == 4
    assert sum(await admitted(admission, [asking(b)] * 8)) == 8


async def test_what_a_crowd_has_waiting_keeps_nobody_else_out(metrics: Metrics) -> None:
    ledger = Ledger.local()
    ledger.set_pace(Pace(tokens_per_s=100, weights=2.0, busy_tokens=40))
    a, b = tenants = declared(A, B)
    outcomes = await admitted(make_admission(metrics, tenants, ledger, max_queue_s=1.0), [asking(a)] * 20 + [asking(b)])
    assert not all(outcomes[:20]) and outcomes[20]


@pytest.mark.parametrize("front", [0, 1])
async def test_a_rate_is_whole_again_after_a_rest_on_whatever_front_it_was_spent(
    metrics: Metrics, front: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("server.admission.time.monotonic", lambda: now)
    (a,) = tenants = declared(Tenant("a", max_requests_per_s=10.0))
    shared = Ledger.create(2)
    fronts = [make_admission(metrics, tenants, Ledger.open(shared.fd, 2, number)) for number in (0, 1)]
    for _ in range(100):
        now += 0.1
        assert await admitted(fronts[0], [asking(a)]) == [True]
    now += 1.0
    assert sum([(await admitted(fronts[front], [asking(a)]))[0] for _ in range(20)]) == 10
    shared.close()


async def test_a_rate_that_is_declared_later_counts_from_then_on(metrics: Metrics) -> None:
    tenants = Tenants([Tenant("a")])
    admission = Admission(ApiConfig(), metrics, make_base(), tenants)
    for _ in range(50):
        await admitted(admission, [asking(tenants.get("a"))])
    tenants.replace([Tenant("a", max_requests_per_s=3.0)])
    assert sum([(await admitted(admission, [asking(tenants.get("a"))]))[0] for _ in range(9)]) == 3


async def test_work_that_cannot_make_its_deadline_is_refused_at_once(metrics: Metrics) -> None:
    ledger = Ledger.local()
    ledger.set_pace(Pace(tokens_per_s=100, weights=1.0, busy_tokens=1000))
    admission = make_admission(metrics, ledger=ledger)
    async with admission.enter(asking(num_tokens=50)):
        assert await admitted(admission, [asking(wait_s=0.2), asking(wait_s=60.0), asking()]) == [False, True, True]


async def test_whoever_has_nothing_inside_comes_in_however_long_the_request(metrics: Metrics) -> None:
    ledger = Ledger.local()
    ledger.set_pace(Pace(tokens_per_s=1, weights=1.0, busy_tokens=1))
    ledger.refused(ANYONE.index)
    assert await admitted(make_admission(metrics, ledger=ledger), [asking(num_tokens=90)]) == [True]
