from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_adapters import make_adapter, make_fusion

from adapters_cache.formats.setups import fusion_name, is_setup, read_setup
from server.core import BaseInfo
from server.errors import MalformedCheckpoint


def leaf(name: str) -> dict[str, Any]:
    return {"type": "single", "children": [name]}


def write(path: Path, tree: Any, head: Any = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_setup.json").write_text(json.dumps({"adapter_setup": tree, "head_setup": head}))
    return path


@pytest.fixture
def folder(tmp_path: Path, base: BaseInfo) -> Path:
    for name in "abc":
        make_adapter(tmp_path / "s" / name, base)
    make_fusion(tmp_path / "s" / "a,b", base, ["a", "b"])
    return tmp_path / "s"


def test_saved_tree_becomes_a_plain_one(folder: Path) -> None:
    fuse = {"type": "Fuse", "children": [leaf("a"), {"type": "Stack", "children": [leaf("c"), leaf("b")]}]}
    average = {"type": "Average", "children": [leaf("a"), leaf("b")], "kwargs": {"weights": [0.3, 0.7]}}
    assert not is_setup(folder)
    setup = read_setup(write(folder, {"type": "Parallel", "children": [fuse, average]}, ["a", "b"]))
    assert is_setup(folder) and setup.head == ["a", "b"] and setup.adapters.keys() == {"a", "b", "c"}
    assert setup.tree == {
        "type": "Parallel",
        "children": [
            {"type": "Fuse", "children": ["a", {"type": "Stack", "children": ["c", "b"]}]},
            {"type": "Average", "children": ["a", "b"], "weights": [0.3, 0.7]},
        ],
    }
    assert setup.fusions == {"a,b": folder / "a,b"}


def test_fusion_is_called_by_its_own_name_or_that_of_its_members() -> None:
    assert fusion_name({"children": ["a", "b"]}) == "a,b"
    assert fusion_name({"children": ["a", "b"], "name": "mine"}) == "mine"


def test_setup_may_have_no_adapters(folder: Path) -> None:
    setup = read_setup(write(folder, None, "a"))
    assert setup.tree is None and setup.head == "a"


@pytest.mark.parametrize(
    "tree",
    [
        leaf("missing"),
        {"type": "Fuse", "children": [leaf("a"), leaf("c")]},
        {"type": "Sum", "children": [leaf("a")]},
        {"type": "Stack", "children": []},
        {"type": "single", "children": [3]},
        {"type": "Stack", "children": [leaf("a")], "kwargs": {"speed": 1}},
        [leaf("a")],
        3,
    ],
    ids=str,
)
def test_tree_that_is_no_composition_is_malformed(folder: Path, tree: Any) -> None:
    with pytest.raises(MalformedCheckpoint):
        read_setup(write(folder, tree))


def test_tree_that_never_ends_is_malformed(folder: Path) -> None:
    tree = leaf("a")
    for _ in range(20):
        tree = {"type": "Stack", "children": [tree]}
    with pytest.raises(MalformedCheckpoint, match="no composition|nested"):
        read_setup(write(folder, tree))
