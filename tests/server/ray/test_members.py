"""Who lives, by what they say."""

from __future__ import annotations

from server.ray.members import GONE_S, SETTLE_S, Members


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_who_speaks_is_listed_until_it_is_silent_for_too_long() -> None:
    clock = Clock()
    members = Members(clock)
    clock.now += SETTLE_S
    members.beat("b:1")
    assert [*(members.beat("a:1") or ())] == ["a:1", "b:1"]
    clock.now += GONE_S - 0.1
    assert [*(members.beat("a:1") or ())] == ["a:1", "b:1"]
    clock.now += 0.1
    assert [*(members.listed() or ())] == ["a:1"]


def test_who_leaves_is_unlisted_at_once() -> None:
    clock = Clock()
    members = Members(clock)
    clock.now += SETTLE_S
    members.beat("a:1")
    members.beat("b:1")
    assert [*(members.leave("a:1") or ())] == ["b:1"]
    assert [*(members.leave("a:1") or ())] == ["b:1"]


def test_just_started_it_gives_no_half_list() -> None:
    clock = Clock()
    members = Members(clock)
    assert members.beat("a:1") is None
    clock.now += SETTLE_S - 0.1
    assert members.beat("b:1") is None
    clock.now += 0.1
    assert [*(members.listed() or ())] == ["a:1", "b:1"]


def test_just_started_it_believes_lists_until_those_in_them_have_had_time_to_speak() -> None:
    clock = Clock()
    members = Members(clock)
    members.beat("a:1", ["a:1", "b:1", "c:1"])
    clock.now += SETTLE_S
    members.beat("b:1", ["d:1"])  # of what is long known, nothing more is taken on trust
    assert [*(members.beat("a:1") or ())] == ["a:1", "b:1", "c:1"]
    clock.now += GONE_S - SETTLE_S
    assert [*(members.listed() or ())] == ["a:1", "b:1"]


def test_all_agree_once_each_has_the_list() -> None:
    clock = Clock()
    members = Members(clock)
    clock.now += SETTLE_S
    members.beat("a:1", ["a:1"])
    assert [*(members.agreed() or ())] == ["a:1"]
    members.beat("b:1", [])
    members.beat("a:1", ["b:1", "a:1"])
    assert members.agreed() is None
    members.beat("b:1", ["a:1", "b:1"])
    assert [*(members.agreed() or ())] == ["a:1", "b:1"]


def test_metrics_are_found_of_whoever_has_said_where_they_are() -> None:
    clock = Clock()
    members = Members(clock)
    members.beat("a:1", ["a:1", "b:1"], "a:9")
    clock.now += SETTLE_S
    assert members.listed() == {"a:1": "a:9", "b:1": ""}
    assert members.beat("b:1", ["a:1", "b:1"], "b:9") == {"a:1": "a:9", "b:1": "b:9"}
