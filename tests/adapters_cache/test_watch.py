from __future__ import annotations

from pathlib import Path

import pytest

from adapters_cache.origin import Listed, Listing
from adapters_cache.sources import FolderSource
from adapters_cache.watch import Changes
from server.errors import Unavailable


def listing(**stamps: str) -> Listing:
    return Listing({name: Listed(FolderSource(Path(name)), stamp) for name, stamp in stamps.items()})


def told(changes: Changes, **stamps: str) -> tuple[list[str], list[str]]:
    news = changes.update("place", listing(**stamps))
    return sorted(news.changed), list(news.gone)


def test_a_new_name_is_told_once_and_at_once() -> None:
    changes = Changes(listing(a="1"))
    assert told(changes, a="1") == ([], [])
    assert told(changes, a="1", b="1") == (["b"], [])
    assert told(changes, a="1", b="1") == ([], [])


def test_a_replacement_is_told_when_it_has_settled() -> None:
    changes = Changes(listing(a="1"))
    assert told(changes, a="2") == ([], [])
    assert told(changes, a="3") == ([], [])
    assert told(changes, a="3") == (["a"], [])
    assert told(changes, a="3") == ([], [])


def test_what_is_missed_twice_is_gone_and_may_come_back() -> None:
    changes = Changes(listing(a="1", b="1"))
    assert told(changes, b="1") == ([], [])
    assert told(changes, b="1") == ([], ["a"])
    assert told(changes, b="1") == ([], [])
    assert told(changes, a="1", b="1") == (["a"], [])


def test_what_is_missed_once_stays() -> None:
    changes = Changes(listing(a="1", b="1"))
    assert told(changes, b="1") == ([], [])
    assert told(changes, a="1", b="1") == ([], [])


def test_a_place_that_lists_nothing_any_more_is_taken_to_be_away() -> None:
    changes = Changes(listing(a="1"))
    for _ in range(3):
        with pytest.raises(Unavailable, match="lists nothing any more"):
            changes.update("place", listing())
    assert told(changes, a="1") == ([], [])


def test_what_could_not_be_taken_over_is_told_again() -> None:
    changes = Changes(listing(a="1"))
    told(changes, a="2")
    assert told(changes, a="2") == (["a"], [])
    changes.again("a")
    assert told(changes, a="2") == (["a"], []) and told(changes, a="2") == ([], [])


def test_setups_that_come_change_or_go_are_noticed() -> None:
    changes = Changes(Listing({}, {}))
    assert changes.update("place", Listing({}, {"s": "1"})).has_other_setups
    assert not changes.update("place", Listing({}, {"s": "1"})).has_other_setups
    assert changes.update("place", Listing({}, {})).has_other_setups
