"""Of any number of adapters the busiest are named, and no series ever falls."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from server.usage import MAX_NAMED, OTHERS, REVIEW_S, UsageBook


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("server.usage.time.monotonic", lambda: now[0])
    return now


def ask(book: UsageBook, names: Iterable[str], tokens: int = 10) -> None:
    for name in names:
        book.answered(name, num_inputs=1, num_tokens=tokens, ready_s=0.1, queue_s=0.25, compute_s=0.5, total_s=1.0)


def answered(book: UsageBook) -> dict[str, float]:
    requests = next(iter(book.collect()))
    return {one.labels["adapter"]: one.value for one in requests.samples if one.labels["outcome"] == "answered"}


def test_the_number_of_series_is_bounded_and_nothing_is_lost(clock: list[float]) -> None:
    book = UsageBook()
    for _ in range(5):
        ask(book, (f"a{index}" for index in range(10_000)))
        clock[0] += REVIEW_S
        shown = answered(book)
        assert len(shown) == MAX_NAMED + 1
    assert sum(len(family.samples) for family in book.collect()) == 4 * (MAX_NAMED + 1)
    assert sum(usage.num_answered for _, usage in book.all()) == 50_000


def test_a_newcomer_that_is_asked_for_more_takes_a_place_and_every_count_only_grows(clock: list[float]) -> None:
    book = UsageBook()
    ask(book, (f"a{index}" for index in range(MAX_NAMED)))
    ask(book, ["new"])
    assert "new" not in answered(book)
    before = answered(book)
    ask(book, ["new"] * 50)
    clock[0] += REVIEW_S
    after = answered(book)
    assert after["new"] == 0 and after[OTHERS] == 51  # counted where it was counted
    assert len(after) == MAX_NAMED + 1
    assert all(after[name] >= count for name, count in before.items() if name in after)
    ask(book, ["new"])
    assert answered(book)["new"] == 1
    assert [name for name, _ in book.busiest(1)] == ["new"]


def test_what_is_unloaded_is_shown_no_more(clock: list[float]) -> None:
    book = UsageBook()
    ask(book, ["a", "b"])
    book.failed("a", 2.0)
    usage = book.get("a")
    assert usage is not None and (usage.num_answered, usage.num_failed, usage.failed_s) == (1, 1, 2.0)
    book.forget("a")
    assert answered(book) == {"b": 1, OTHERS: 0} and book.get("a") is None
