"""Bytes of each tenant in a tier, and its pins."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import make_adapter

from adapters_cache.books import Books, Entry
from adapters_cache.pins import check_tenant_pin
from adapters_cache.registry import Record
from adapters_cache.sources import FolderSource
from server.core import Tenant, Tier
from server.errors import Overloaded, TooLarge
from server.metrics import Metrics
from server.tenants import Tenants


@pytest.fixture
def tenants() -> Tenants:
    return Tenants([Tenant("a", ("a-*",), host_bytes=300, max_pins=2), Tenant("b", ("b-*",))])


@pytest.fixture
def books(tenants: Tenants) -> Books:
    return Books(Tier.HOST, 1000, Metrics(), lambda entry: None, tenants=tenants)


def add(books: Books, *names: str) -> list[Entry]:
    """Each leased, as whoever brings one does."""
    entries = []
    for name in names:
        entries.append(Entry(make_adapter(name), 100))
        books.add(entries[-1])
        books.lease(entries[-1])
        books.check_integrity()
    return entries


def names(books: Books) -> list[str]:
    return sorted(entry.adapter.manifest.name for entry in books.entries())


def test_beyond_its_limit_a_tenants_adapters_make_room_among_themselves(books: Books) -> None:
    for name in ("b-1", "a-1", "a-2", "a-3", "b-2", "a-4", "a-5"):
        books.release(*add(books, name))
    assert names(books) == ["a-3", "a-4", "a-5", "b-1", "b-2"]


def test_what_is_in_use_may_be_above_the_limit_until_it_is_released(books: Books) -> None:
    entries = add(books, "a-1", "a-2", "a-3", "a-4", "a-5")
    assert len(names(books)) == 5
    for entry in entries:
        books.release(entry)
    assert names(books) == ["a-3", "a-4", "a-5"]


def test_pinned_ones_stay(books: Books) -> None:
    books.pin("digest-a-1", True)
    for name in ("a-1", "a-2", "a-3", "a-4"):
        books.release(*add(books, name))
    assert names(books) == ["a-1", "a-3", "a-4"]


def test_one_that_is_larger_than_its_tenants_limit_is_refused(books: Books) -> None:
    with pytest.raises(TooLarge, match="host_bytes of its tenant is 300"):
        books.check_fits(301, "a-1")
    books.check_fits(301, "b-1")


def test_new_limits_and_owners_count_at_once(books: Books, tenants: Tenants) -> None:
    for name in ("a-1", "a-2", "b-1", "b-2"):
        books.release(*add(books, name))
    tenants.replace([Tenant("c", ("a-1", "b-*"), host_bytes=100), Tenant("a", ("a-*",), host_bytes=300)])
    books.tenants_changed()
    books.check_integrity()
    assert names(books) == ["a-2", "b-2"]


def record(name: str, size: int = 100, is_pinned: bool = False) -> Record:
    return Record(name, FolderSource(Path(name)), sizes={Tier.HOST: size}, is_pinned=is_pinned)


def test_pins_are_bounded_in_number_and_bytes_for_their_own_tenant(tenants: Tenants) -> None:
    first, second, other = record("a-1", is_pinned=True), record("a-2"), record("b-1", is_pinned=True)
    check_tenant_pin(second, [first, second, other], tenants)
    second.is_pinned, third = True, record("a-3")
    with pytest.raises(Overloaded, match="max_pins is 2"):
        check_tenant_pin(third, [first, second, third, other], tenants)
    large = record("a-2", 250)
    with pytest.raises(Overloaded, match="350 bytes pinned, its host_bytes is 300"):
        check_tenant_pin(large, [first, large], tenants)
    many = [record(f"b-{i}", is_pinned=True) for i in range(9)]
    check_tenant_pin(many[0], many, tenants)
