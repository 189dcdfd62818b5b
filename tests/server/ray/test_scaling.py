"""How many replicas a load asks for."""

from __future__ import annotations

import pytest

from server.ray.scaling import (
    BUSY,
    COMPUTE,
    MAX_QUEUE_S,
    NUM_WAITED,
    QUEUE_S,
    TOKENS,
    TOKENS_PER_S,
    WAITED,
    load_between,
    num_wanted,
)


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


def test_a_load_is_what_happened_between_two_looks() -> None:
    before = {COMPUTE: 10.0, TOKENS: 1000.0, WAITED: 5.0, NUM_WAITED: 10.0}
    after = {COMPUTE: 11.0, TOKENS: 1400.0, WAITED: 6.0, NUM_WAITED: 30.0}
    assert load_between(before, after, 2.0) == {BUSY: 0.5, TOKENS_PER_S: 200.0, QUEUE_S: 0.05}


def test_an_idle_server_and_one_that_started_anew_have_no_load() -> None:
    idle = {BUSY: 0.0, TOKENS_PER_S: 0.0, QUEUE_S: 0.0}
    assert load_between({}, {}, 1.0) == idle
    assert load_between({COMPUTE: 9.0, TOKENS: 9.0, WAITED: 9.0, NUM_WAITED: 9.0}, {COMPUTE: 1.0}, 1.0) == idle
