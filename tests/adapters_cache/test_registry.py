from __future__ import annotations

from pathlib import Path

import pytest

from adapters_cache.registry import Registry
from server.errors import AdapterNotFound, InvalidInput

SOURCE = Path("folder")


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
    assert registry.register("sst", Path("elsewhere")) is record and record.source == Path("elsewhere")
    assert names(registry)[1] == 5


def test_digest_is_aliased_while_any_name_points_to_it(registry: Registry) -> None:
    one, two = registry.get("sst"), registry.get("Zeta")
    assert registry.point(one, "d") == "" and registry.point(two, "d") == ""
    assert registry.point(one, "e") == "d" and registry.is_aliased("d")
    assert registry.point(two, "") == "d" and not registry.is_aliased("d") and registry.is_aliased("e")


def test_digest_is_pinned_while_any_of_its_names_is(registry: Registry) -> None:
    one, two = registry.get("sst"), registry.get("Zeta")
    registry.point(one, "d")
    registry.point(two, "d")
    one.is_pinned = True
    assert registry.is_pinned("d")
    registry.point(one, "e")
    assert not registry.is_pinned("d") and registry.is_pinned("e")
