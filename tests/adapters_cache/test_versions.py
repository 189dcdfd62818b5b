from __future__ import annotations

from pathlib import Path

import pytest

from adapters_cache.registry import Record
from adapters_cache.sources import FolderSource
from adapters_cache.versions import Versions, divided, moved, shared
from server.errors import InvalidInput

A, B, C, D = (letter * 64 for letter in "abcd")


def record(digest: str = A, shares: dict[str, int] | None = None, history: tuple[str, ...] = ()) -> Record:
    return Record("reviews", FolderSource(Path("reviews")), digest=digest, shares=shares or {}, history=history)


def test_a_name_that_moves_can_go_back_to_the_last_ones() -> None:
    assert moved(record("", history=()), A, 2) == Versions(A, {}, ())
    assert moved(record(A), A, 2) == Versions(A, {}, ())
    assert moved(record(A, history=(B, C)), D, 2) == Versions(D, {}, (A, B))
    assert moved(record(A, history=(B, C)), B, 2) == Versions(B, {}, (A, C))
    assert moved(record(A), B, 0) == Versions(B, {}, ())


def test_what_a_share_was_becomes_the_one_that_answers_all() -> None:
    assert moved(record(A, {B: 10}), B, 2) == Versions(B, {}, (A,))
    assert moved(record(A, {B: 10}), C, 2) == Versions(C, {B: 10}, (A,))


def test_a_new_version_beside_takes_the_place_of_the_last_one_beside() -> None:
    assert shared(record(A, {B: 10}), C, 20, 2) == Versions(A, {C: 20}, (B,))


def test_requests_are_divided_as_asked() -> None:
    both = record(A, {B: 10}, (C,))
    assert divided(both, {B: 50}, 2) == Versions(A, {B: 50}, (C,))
    assert divided(both, {B: 100}, 2) == Versions(B, {}, (A, C))
    assert divided(both, {B: 0}, 2) == Versions(A, {}, (B, C))
    assert divided(both, {C[:8]: 100}, 2) == Versions(C, {}, (A, B))
    assert divided(both, {A: 20, B: 30, C: 50}, 2) == Versions(A, {B: 30, C: 50}, ())
    assert divided(both, {B: 60, C: 40}, 2) == Versions(B, {C: 40}, (A,))
    assert divided(both, {A: 100}, 2) == Versions(A, {}, (B, C))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({D: 10}, "has no version 'dddd"),
        ({A[:7]: 100}, "give 8 or more digits of one of aaaaaaaaaaaa, bbbbbbbbbbbb, cccccccccccc"),
        ({B: 101}, "percent 101 is not between 0 and 100"),
        ({B: -1}, "percent -1"),
        ({B: 60, C: 60}, "the percentages make 120"),
        ({A: 60, B: 20}, "the percentages make 80"),
    ],
)
def test_what_does_not_fit_is_refused(asked: dict[str, int], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        divided(record(A, {B: 10}, (C,)), asked, 2)
