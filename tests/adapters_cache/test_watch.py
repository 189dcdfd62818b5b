from __future__ import annotations

from pathlib import Path

from adapters_cache.origin import Listed
from adapters_cache.sources import FolderSource
from adapters_cache.watch import Changes


def listing(**stamps: str) -> dict[str, Listed]:
    return {name: Listed(FolderSource(Path(name)), stamp) for name, stamp in stamps.items()}


def told(changes: Changes, **stamps: str) -> tuple[list[str], list[str]]:
    changed, gone = changes.update(listing(**stamps))
    return sorted(changed), gone


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
    changes = Changes(listing(a="1"))
    assert told(changes) == ([], [])
    assert told(changes, a="1") == ([], [])
