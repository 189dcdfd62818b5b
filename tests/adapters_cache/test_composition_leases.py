"""Every part of a composition is leased, or none."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import make_adapter, make_base
from make_adapters import make_adapter as save_adapter

from adapters_cache.compositions import Compositions
from adapters_cache.naming import expanded, named_of
from server.composition import text_of
from server.config import CacheConfig
from server.core import Adapter, AdapterStatus, Tier
from server.errors import AdapterNotFound, InvalidInput, Overloaded
from server.expression import parse


class Lease:
    def __init__(self, held: Counter[str], adapter: Adapter) -> None:
        self.adapter, self._held = adapter, held
        held[adapter.manifest.name] += 1

    def release(self) -> None:
        self._held[self.adapter.manifest.name] -= 1


class Shelf:
    """Adapters a, b and c; `bad` fails, `slow` waits for its gate."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.on_change: Callable[[], Awaitable[None]]

    def register(self, name: str, source: Path) -> None: ...

    def get(self, name: str) -> AdapterStatus:
        if name not in ("a", "b", "c", "bad", "slow"):
            raise AdapterNotFound(f"no adapter {name}")
        return AdapterStatus(name, Tier.ORIGIN)

    def is_shared(self, name: str) -> bool:
        return False

    async def ready(self, name: str, key: str = "", version: str = "") -> Lease:
        self.get(name)
        if name == "bad":
            raise Overloaded("no room")
        if name == "slow":
            await self.gate.wait()
        return Lease(self.held, make_adapter(name))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def compositions(shelf: Shelf) -> Compositions:
    adapters: Any = shelf
    return Compositions(adapters, CacheConfig(), make_base(num_layers=2))


async def test_a_setup_whose_name_is_taken_meanwhile_takes_no_other_along(shelf: Shelf, tmp_path: Path) -> None:
    def save(*names: str) -> None:
        for name in names:
            save_adapter(tmp_path / name / "member", make_base(num_layers=2))
            leaf = {"type": "single", "children": ["member"]}
            (tmp_path / name / "adapter_setup.json").write_text(json.dumps({"adapter_setup": leaf}))

    adapters: Any = shelf
    compositions = Compositions(adapters, CacheConfig(adapters=(tmp_path,)), make_base(num_layers=2))
    save("first", "second")
    await compositions.start()
    assert compositions.get("first").composition == "first/member"
    save("a", "third")
    await shelf.on_change()
    for name in ("first", "second", "third"):
        assert compositions.get(name).composition == f"{name}/member"
    assert compositions.get("a").composition == ""
    (tmp_path / "first" / "adapter_setup.json").write_text('{"adapter_setup": {"type": "Fuse", "children": [null]}}')
    again = Compositions(adapters, CacheConfig(adapters=(tmp_path,)), make_base(num_layers=2))
    await again.start()  # neither keeps a server from starting
    assert again.get("third").composition == "third/member"


async def test_each_part_is_leased_once_until_release(compositions: Compositions, shelf: Shelf) -> None:
    lease = await compositions.ready("Parallel(a, Stack(b, a), c)")
    assert shelf.held == {"a": 1, "b": 1, "c": 1}
    assert [part.manifest.name for part in lease.target.parts] == ["a", "b", "c"]
    assert [name for name, _ in lease.names] == ["a", "Stack(b, a)", "c"]
    lease.release()
    lease.release()
    assert shelf.held.total() == 0


@pytest.mark.parametrize(
    ("expression", "heads", "error"),
    [
        ("Stack(a, bad)", (), Overloaded),
        ("Stack(a, missing, b)", (), AdapterNotFound),
        ("Fuse(a, b)", (), AdapterNotFound),
        ("Stack(a, b)", ("missing",), AdapterNotFound),
        ("Stack(a, b)", ("bad",), Overloaded),
        ("Parallel(a, b)", ("c", "c", "c"), InvalidInput),
    ],
)
async def test_a_failure_gives_back_what_was_leased(
    compositions: Compositions, shelf: Shelf, expression: str, heads: tuple[str, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await compositions.ready(expression, heads)
    assert shelf.held.total() == 0


async def test_a_cancelled_caller_holds_nothing(compositions: Compositions, shelf: Shelf) -> None:
    task = asyncio.create_task(compositions.ready("Stack(a, slow, b)"))
    while not shelf.held["b"]:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shelf.held.total() == 0


async def test_digest_tells_compositions_apart(compositions: Compositions) -> None:
    texts = ("a", "Stack(a, b)", "Stack(b, a)", "Parallel(a, b)", "Average(a, b)", "Average(a, b; 0.3, 0.7)")
    targets = [(await compositions.ready(text)).target for text in texts]
    targets.append((await compositions.ready("a", skip_layers=[1])).target)
    assert targets[0].digest == "digest-a"
    assert len({target.digest for target in targets}) == len(targets)


@pytest.mark.parametrize(
    ("expression", "becomes"),
    [
        ("Stack(x, c)", "Stack(a, b, c)"),
        ("Parallel(x, Stack(c, x))", "Parallel(Stack(a, b), Stack(c, a, b))"),
        ("Fuse(c, x)", "Fuse(c, Stack(a, b))"),
        ("Average(x, c; 1, 3)", "Average(Stack(a, b), c; 0.25, 0.75)"),
    ],
)
def test_named_compositions_are_put_in_place(expression: str, becomes: str) -> None:
    name, named = named_of("x = Stack(a, b)", {})
    assert text_of(expanded(parse(expression), {name: named})) == becomes


def test_what_a_name_stands_for_may_not_stand_everywhere() -> None:
    name, named = named_of("x = Parallel(a, b) : a, b", {})
    assert named.heads == ("a", "b")
    with pytest.raises(InvalidInput, match="Parallel may not stand in a Fuse"):
        expanded(parse("Fuse(x, c)"), {name: named})
