"""How many replicas a load asks for."""

from __future__ import annotations

import pytest

from server.ray.scaling import (
    ALL,
    BUSY,
    COMPUTE,
    MAX_QUEUE_S,
    NUM_WAITED,
    QUEUE,
    QUEUE_S,
    TOKENS,
    TOKENS_PER_S,
    WAITED,
    load_between,
    num_wanted,
)
from server.top.scrape import PREFIX, Labels, Scrape


@pytest.mark.parametrize(
    ("busy", "queue_s", "wanted"),
    [
        ([0.0], [0.0], 1),
        ([0.69], [0.0], 1),
        ([0.71], [0.0], 2),
        ([1.0, 1.0], [0.01, 0.01], 3),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0], 1),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 2 * MAX_QUEUE_S], 4),  # one is behind: its adapters may move
        ([1.0] * 4, [2 * MAX_QUEUE_S] * 4, 6),
    ],
)
def test_replicas_are_as_many_as_are_busy_and_more_where_work_waits(
    busy: list[float], queue_s: list[float], wanted: int
) -> None:
    assert num_wanted(len(busy), busy, queue_s) == wanted


def seen(at: float, compute: float = 0.0, tokens: float = 0.0, waited: float = 0.0, num_waited: float = 0.0) -> Scrape:
    """A look at a server whose metrics stand so."""
    stages: list[tuple[Labels, float]] = [({"stage": "total"}, 1000.0 + at)]  # plays no part
    samples = {
        f"{PREFIX}{COMPUTE}": [(ALL, compute)],
        f"{PREFIX}{TOKENS}": [(ALL, tokens)],
        f"{PREFIX}{WAITED}": [(QUEUE, waited), *stages],
        f"{PREFIX}{NUM_WAITED}": [(QUEUE, num_waited), *stages],
    }
    return Scrape(at, samples)


def test_a_load_is_what_happened_between_two_looks() -> None:
    before, after = seen(7.0, 10.0, 1000.0, 5.0, 10.0), seen(9.0, 11.0, 1400.0, 6.0, 30.0)
    assert load_between(before, after) == {BUSY: 0.5, TOKENS_PER_S: 200.0, QUEUE_S: 0.05}


def test_an_idle_server_and_one_that_started_anew_have_no_load() -> None:
    idle = {BUSY: 0.0, TOKENS_PER_S: 0.0, QUEUE_S: 0.0}
    assert load_between(seen(1.0), seen(2.0)) == idle
    assert load_between(seen(1.0, 9.0, 9.0, 9.0, 9.0), seen(2.0, compute=1.0)) == idle
