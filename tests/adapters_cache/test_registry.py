from __future__ import annotations

from pathlib import Path

import pytest

from adapters_cache.registry import Record, Registry
from adapters_cache.sources import FolderSource
from server.errors import AdapterNotFound, InvalidInput

SOURCE = FolderSource(Path("folder"))


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for name in ("sst", "snips-b", "snips-a", "Zeta", "snips_c"):
        registry.register(name, SOURCE)
    return registry


def names(registry: Registry, prefix: str = "", after: str = "", limit: int = 100) -> tuple[list[str], int]:
    records, total = registry.page(prefix, after, limit)
    return [record.name for record in records], total


def test_pages_are_sorted_and_count_every_match(registry: Registry) -> None:
    assert names(registry) == (["Zeta", "snips-a", "snips-b", "snips_c", "sst"], 5)
    assert names(registry, limit=2) == (["Zeta", "snips-a"], 5)
    assert names(registry, prefix="snips", limit=2) == (["snips-a", "snips-b"], 3)
    assert names(registry, prefix="snips", after="snips-b") == (["snips_c"], 3)
    assert names(registry, prefix="snips", after="a") == (["snips-a", "snips-b", "snips_c"], 3)
    assert names(registry, prefix="snips", after="sst") == ([], 3)
    assert names(registry, prefix="none") == ([], 0)


def test_unknown_name_is_not_found(registry: Registry) -> None:
    with pytest.raises(AdapterNotFound, match="'nothing'"):
        registry.get("nothing")


@pytest.mark.parametrize("name", ["", "base", "../up", "a/../b", ".hidden", "-x", "a b", "a\n", "x" * 129, "ä"])
def test_what_cannot_be_a_name_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInput):
        registry.register(name, SOURCE)


def test_registering_again_keeps_what_is_known(registry: Registry) -> None:
    record = registry.get("sst")
    elsewhere = FolderSource(Path("elsewhere"))
    assert registry.register("sst", elsewhere) is record and record.source == elsewhere
    assert names(registry)[1] == 5


def test_digest_is_aliased_while_any_name_points_to_it(registry: Registry) -> None:
    one, two = registry.get("sst"), registry.get("Zeta")
    assert registry.point(one, "d") == {"d"} and registry.point(two, "d") == {"d"}
    assert registry.point(one, "e") == {"d", "e"} and registry.is_aliased("d")
    assert registry.point(two, "") == {"d"} and not registry.is_aliased("d") and registry.is_aliased("e")


def test_a_share_is_an_alias_too(registry: Registry) -> None:
    record = registry.get("sst")
    registry.point(record, "d", {"e": 10})
    assert registry.is_aliased("e") and registry.point(record, "d") == {"e"} and not registry.is_aliased("e")


def test_a_name_that_points_nowhere_can_be_removed(registry: Registry) -> None:
    registry.remove(registry.get("snips-b"))
    assert names(registry) == (["Zeta", "snips-a", "snips_c", "sst"], 4) and "snips-b" not in registry


def test_requests_are_divided_as_shares_say_and_equal_keys_stay_together() -> None:
    record = Record("reviews", SOURCE, digest="old", shares={"new": 30})
    chosen = {f"user{i}": record.choose(f"user{i}") for i in range(2000)}
    assert 0.26 < list(chosen.values()).count("new") / 2000 < 0.34
    assert all(record.choose(key) == digest for key, digest in chosen.items())
    record.shares = {"new": 60}  # who got the new one keeps it
    assert all(record.choose(key) == "new" for key, digest in chosen.items() if digest == "new")
    by_chance = [record.choose("") for _ in range(2000)]
    assert 0.55 < by_chance.count("new") / 2000 < 0.65


def test_digest_is_pinned_while_any_of_its_names_is(registry: Registry) -> None:
    one, two = registry.get("sst"), registry.get("Zeta")
    registry.point(one, "d")
    registry.point(two, "d")
    one.is_pinned = True
    assert registry.is_pinned("d")
    registry.point(one, "e")
    assert not registry.is_pinned("d") and registry.is_pinned("e")


def test_a_version_beside_is_not_pinned_with_its_name(registry: Registry) -> None:
    record = registry.get("sst")
    record.is_pinned = True
    registry.point(record, "d", {"e": 10})
    assert registry.is_pinned("d") and not registry.is_pinned("e")
    registry.point(record, "e", {"d": 10})
    assert registry.is_pinned("e") and not registry.is_pinned("d")
