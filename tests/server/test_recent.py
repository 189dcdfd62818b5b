from __future__ import annotations

import asyncio

import pytest
from fakes import make_adapter, make_sample

from server.core import Batch
from server.errors import InvalidInput
from server.recent import BATCH_EVERY_S, MAX_BATCHES, MAX_ERRORS, Recent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("server.recent.time.time", lambda: now[0])
    return now


async def test_batches_tell_what_rode_in_them_and_few_of_many_are_kept(clock: list[float]) -> None:
    assert asyncio.get_running_loop()
    recent = Recent()
    samples = [make_sample(make_adapter(name)) for name in "aab"] + [make_sample()]
    for _ in range(3 * MAX_BATCHES):
        recent.batch(Batch(samples, {}), 0.5)
        recent.batch(Batch(samples[:1], {}), 0.5)  # at the same time
        clock[0] += 2 * BATCH_EVERY_S
    assert len(recent.batches) == MAX_BATCHES
    newest = recent.batches[0]
    assert newest.at == pytest.approx(clock[0] - 2 * BATCH_EVERY_S)
    assert newest.adapters == (("a", 2), ("b", 1), ("base", 1))


async def test_the_same_failure_is_counted_and_others_push_the_oldest_out(clock: list[float]) -> None:
    recent = Recent()
    for _ in range(3):
        recent.failed("a", "acme", "INVALID_ARGUMENT", InvalidInput("no"))
    assert [(note.adapter, note.count, note.reason) for note in recent.errors] == [("a", 3, "INVALID_INPUT")]
    for index in range(MAX_ERRORS):
        recent.failed(f"b{index}", "acme", "INVALID_ARGUMENT", InvalidInput("no"))
    assert len(recent.errors) == MAX_ERRORS and recent.errors[0].adapter == f"b{MAX_ERRORS - 1}"
    assert "a" not in {note.adapter for note in recent.errors}
    other = Recent()
    other.add(recent.take_errors())
    assert len(other.errors) == MAX_ERRORS and recent.errors == []
