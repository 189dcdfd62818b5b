"""Who goes when there is no room."""

from __future__ import annotations

import gc
import weakref

import pytest
from fakes import make_adapter

from adapters_cache.books import MAX_LEFT_OVER, Books, Entry
from adapters_cache.host import HostTier
from adapters_cache.reserves import Reserves
from server.core import Tier
from server.errors import InvalidInput, Overloaded
from server.metrics import Metrics


@pytest.fixture
def gone() -> list[str]:
    return []


@pytest.fixture
def books(metrics: Metrics, gone: list[str]) -> Books:
    return Books(Tier.HOST, 300, metrics, lambda entry: gone.append(entry.adapter.manifest.name))


def use(books: Books, name: str, size: int = 100, times: int = 1) -> None:
    adapter = make_adapter(name)
    entry = books.find(adapter.digest)
    if entry is None:
        assert books.make_room(size)
        entry = Entry(adapter, size)
        books.add(entry)
    for _ in range(times):
        books.lease(entry)
        books.release(entry)
    books.check_integrity()


def test_of_equal_use_the_one_that_rested_longest_goes(books: Books, gone: list[str]) -> None:
    for name in ("a", "b", "c", "a", "b", "c", "b"):
        use(books, name)
    use(books, "d")
    assert gone == ["a"]


def test_what_is_used_often_outlives_a_scan(books: Books, gone: list[str]) -> None:
    use(books, "often", times=5)
    for number in range(8):
        use(books, f"once{number}")
    assert "often" not in gone and len(gone) == 6


def test_what_was_used_often_long_ago_goes_in_the_end(books: Books, gone: list[str]) -> None:
    use(books, "was", times=5)
    for number in range(40):
        use(books, f"now{number}", times=2)
    assert "was" in gone


def test_large_adapters_go_before_small_ones(books: Books, gone: list[str]) -> None:
    use(books, "small", 50)
    use(books, "large", 200)
    use(books, "other", 100)
    assert gone == ["large"]


def test_nothing_goes_where_that_would_not_do(books: Books, gone: list[str]) -> None:
    use(books, "a")
    use(books, "b", 200)
    entry = books.find(make_adapter("b").digest)
    assert entry is not None
    books.lease(entry)
    assert not books.make_room(150) and gone == []
    assert books.make_room(100) and gone == ["a"]
    books.check_integrity()


def test_what_left_is_not_held_in_memory_by_the_order(books: Books) -> None:
    adapter = make_adapter("a")
    entry = Entry(adapter, 100)
    books.add(entry)
    books.doom(entry)
    watched = weakref.ref(entry.gone)
    del entry, adapter
    gc.collect()
    assert watched() is None


def test_the_order_does_not_grow_with_what_came_and_went(books: Books) -> None:
    for number in range(1_000):
        entry = Entry(make_adapter(f"a{number}"), 100)
        books.add(entry)
        books.doom(entry)
    assert len(books._order) <= MAX_LEFT_OVER + 2


def test_no_victim_is_counted_twice_where_much_was_unloaded(metrics: Metrics, gone: list[str]) -> None:
    books = Books(Tier.HOST, 100_000, metrics, lambda entry: gone.append(entry.adapter.manifest.name))
    entries = [Entry(make_adapter(f"a{number:03}"), 100) for number in range(400)]
    for entry in entries:
        books.add(entry)
    for entry in entries[40:]:
        books.doom(entry)
    for entry in entries[:39]:  # their places in the order are stale now
        books.lease(entry)
        books.release(entry)
    gone.clear()
    books.budget_bytes = books.used_bytes
    assert books.make_room(900)
    assert books.used_bytes + 900 <= books.budget_bytes and len(set(gone)) == len(gone) == 9
    books.check_integrity()


class TestReserves:
    @pytest.fixture
    def books(self, metrics: Metrics, gone: list[str]) -> Books:
        reserves = Reserves(["acme-*=200", "other-*=100"])
        return Books(Tier.HOST, 500, metrics, lambda entry: gone.append(entry.adapter.manifest.name), reserves)

    def put(self, books: Books, *names: str) -> None:
        for name in names:
            books.check_fits(100, name)
            assert books.make_room(100, name)
            books.add(Entry(make_adapter(name), 100))
            books.check_integrity()

    def test_others_do_not_take_what_is_reserved(self, books: Books, gone: list[str]) -> None:
        self.put(books, "acme-1", "acme-2", "acme-3", "x", "y", "z", "w")
        assert gone == ["acme-1", "x"]
        self.put(books, "v", "u")
        assert sum(name.startswith("acme-") for name in gone) == 1

    def test_its_own_make_room_among_themselves(self, books: Books, gone: list[str]) -> None:
        self.put(books, "acme-1", "acme-2", "x", "y", "z")
        books.lease(books.find(make_adapter("x").digest))  # type: ignore[arg-type]
        self.put(books, "acme-3")
        assert gone == ["acme-1"]

    def test_what_nobody_holds_is_free_for_all(self, books: Books, gone: list[str]) -> None:
        self.put(books, "v", "w", "x", "y", "z")
        assert gone == []

    def test_who_cannot_fit_beside_the_reserves_is_told(self, books: Books) -> None:
        self.put(books, "acme-1", "acme-2", "other-1")
        with pytest.raises(Overloaded, match="reserves of others 300"):
            books.check_fits(250, "x")
        books.check_fits(250, "acme-9")

    @pytest.mark.parametrize("rule", ["acme-*", "=5", "a=b", "a=-1", "a=1.5"])
    def test_what_is_no_rule_is_refused(self, rule: str) -> None:
        with pytest.raises(InvalidInput, match="PATTERN=BYTES"):
            Reserves([rule])


def test_reserves_have_to_fit(metrics: Metrics) -> None:
    with pytest.raises(InvalidInput, match="reserves of 301 bytes are more than host_bytes 300"):
        HostTier(300, metrics, lambda digest: None, ["a*=301"])
