from __future__ import annotations

import pytest

from server.backoff import MAX_S
from server.errors import Quarantined
from server.scheduler.quarantine import FREE, MAX_KEYS, Quarantine

KEY = ("tenant", "digest")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def left(quarantine: Quarantine, key: tuple[str, str] = KEY) -> float:
    try:
        quarantine.check(key)
    except Quarantined as error:
        assert error.retry_after_s is not None
        return error.retry_after_s
    return 0.0


def test_the_first_failures_may_be_an_inputs_fault(clock: Clock) -> None:
    quarantine = Quarantine(clock)
    for _ in range(FREE):
        quarantine.failed(KEY, "bad")
    assert left(quarantine) == 0


def test_each_further_failure_costs_twice_as_long_up_to_a_minute(clock: Clock) -> None:
    quarantine, waits = Quarantine(clock), []
    for _ in range(FREE + 9):
        quarantine.failed(KEY, "bad")
        waits.append(left(quarantine))
        clock.now += waits[-1]
        assert left(quarantine) == 0
    assert waits[FREE:] == [1, 2, 4, 8, 16, 32, *[MAX_S] * 3]


def test_a_thousand_failures_in_a_row_still_cost_a_minute(clock: Clock) -> None:
    quarantine = Quarantine(clock)
    for _ in range(2000):
        quarantine.failed(KEY, "bad")
    assert left(quarantine) == MAX_S


def test_an_answer_ends_it(clock: Clock) -> None:
    quarantine = Quarantine(clock)
    for _ in range(FREE + 3):
        quarantine.failed(KEY, "bad")
    quarantine.answered(KEY)
    quarantine.failed(KEY, "bad")
    assert left(quarantine) == 0


def test_one_tenants_failures_are_its_own(clock: Clock) -> None:
    quarantine = Quarantine(clock)
    for _ in range(FREE + 1):
        quarantine.failed(KEY, "bad")
    assert left(quarantine) > 0 and left(quarantine, ("other", "digest")) == left(quarantine, ("tenant", "x")) == 0


def test_what_it_remembers_is_bounded(clock: Clock) -> None:
    quarantine = Quarantine(clock)
    for number in range(MAX_KEYS + 10):
        quarantine.failed(("tenant", str(number)), "bad")
    assert len(quarantine) == MAX_KEYS
