"""The search for the highest rate, against rules and against a queue that is a formula."""

from __future__ import annotations

from collections import Counter

import pytest
from queue_model import answered

from loadtest.arrivals import Catalog, Traffic, schedule
from loadtest.latency import Objective, summarize
from loadtest.sweep import PRECISION, highest_rate


@pytest.mark.parametrize("start", [1.0, 90.0, 317.0, 5000.0])
def test_a_sharp_knee_is_found_from_below_and_from_above(start: float) -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= 317.0

    found = highest_rate(holds, start, lambda: False)
    assert 317.0 / (1 + PRECISION) <= found <= 317.0 and len(tried) < 30


def test_a_rate_that_holds_once_by_luck_is_not_what_is_found() -> None:
    seen: Counter[bool] = Counter()

    def holds(rate: float) -> bool:
        is_above = rate > 100.0
        seen[is_above] += 1
        return not is_above or seen[is_above] == 1

    assert 100.0 / 1.5 < highest_rate(holds, 60.0, lambda: False) <= 100.0


def test_nothing_holds() -> None:
    assert highest_rate(lambda rate: False, 100.0, lambda: False) == 0.0


def test_time_ends_the_search_after_one_try_at_the_earliest() -> None:
    tried: list[float] = []
    assert highest_rate(lambda rate: not tried.append(rate), 100.0, lambda: True) == 100.0
    assert tried == [100.0]


def test_the_knee_of_a_queue_is_found() -> None:
    objective, seconds, seed = Objective(0.05), 30.0, 0

    def holds(rate: float) -> bool:
        nonlocal seed
        seed += 1
        requests = schedule([Traffic()], rate, seconds, Catalog(8, 0, 1), seed)
        return summarize("", answered(requests), seconds, objective).holds(objective)

    found = highest_rate(holds, 20.0, lambda: False)
    assert all(holds(0.9 * found) for _ in range(3)) and not any(holds(1.15 * found) for _ in range(3))
