"""Saved setups: a composition with the adapters, fusions and heads that it names, each in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from adapters_cache.formats.adapterhub import VERSION, is_adapter
from adapters_cache.formats.fusions import is_fusion
from adapters_cache.formats.safe_file import read_json
from server.errors import MalformedCheckpoint

SETUP_CONFIG = "adapter_setup.json"
BLOCKS = frozenset(("Stack", "Fuse", "Split", "BatchSplit", "Parallel", "Average", "MultiTask"))
OPTIONS = frozenset(("splits", "batch_sizes", "weights", "normalize_weights", "name"))
MAX_DEPTH = 8
Tree: TypeAlias = str | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """A saved setup.

    tree      None, an adapter's name, or {"type", "children", options}
    head      None, a head's name, or a list or tree of them
    adapters  name -> its folder, which may hold the head of that name; heads alone too
    fusions   name -> its folder
    """

    tree: Tree | None
    head: Any
    adapters: Mapping[str, Path]
    fusions: Mapping[str, Path]


def is_setup(path: Path) -> bool:
    return (path / SETUP_CONFIG).is_file()


def read_setup(path: Path) -> Setup:
    """Read the tree and find the folders. Raises MalformedCheckpoint."""
    envelope = read_json(path / SETUP_CONFIG)
    tree = _tree(envelope.get("adapter_setup"), "adapter_setup")
    head = _head(envelope.get("head_setup"))
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    adapters = {folder.name: folder for folder in folders if is_adapter(folder) and not is_fusion(folder)}
    fusions = {folder.name: folder for folder in folders if is_fusion(folder)}
    for kind, needed, there in (("adapter", _leaves(tree), adapters), ("fusion", _fusion_names(tree), fusions)):
        for name in needed:
            if name not in there:
                raise MalformedCheckpoint(f"{SETUP_CONFIG} names the {kind} {name!r}, which has no folder", field=kind)
    return Setup(tree, head, adapters, fusions)


def write_setup(path: Path, tree: Tree, head: str | None) -> None:
    """Write `adapter_setup.json` beside the folders that `tree` and `head` name."""
    envelope = {"adapter_setup": _written(tree), "head_setup": head, "version": VERSION}
    (path / SETUP_CONFIG).write_text(json.dumps(envelope, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _written(tree: Tree) -> dict[str, Any] | str:
    if isinstance(tree, str):
        return tree
    options = {name: value for name, value in tree.items() if name in OPTIONS}
    return {"type": tree["type"], "children": [_written(child) for child in tree["children"]], "kwargs": options}


def _tree(node: Any, field: str, depth: int = 0) -> Tree | None:
    if node is None:
        return None
    if isinstance(node, str):
        return node
    children = node.get("children") if isinstance(node, dict) else None
    kind = node.get("type") if isinstance(node, dict) else None
    if not isinstance(children, list) or not children or depth > MAX_DEPTH:
        raise MalformedCheckpoint(f"{field} in {SETUP_CONFIG} has a node that is no composition", field=field)
    if kind == "single" and len(children) == 1 and isinstance(children[0], str):
        return children[0]
    if kind not in BLOCKS:
        raise MalformedCheckpoint(f"{field} in {SETUP_CONFIG} has a node of type {kind!r}", field=field)
    options = node.get("kwargs") or {}
    if not isinstance(options, dict) or options.keys() - OPTIONS:
        raise MalformedCheckpoint(f"{field} in {SETUP_CONFIG} has a node with unknown options", field=field)
    found = {"type": kind, "children": [_tree(child, field, depth + 1) for child in children]}
    return found | {name: value for name, value in options.items() if value is not None}


def _head(value: Any) -> Any:
    if isinstance(value, list):
        return [_head(item) for item in value]
    return _tree(value, "head_setup")


def _leaves(tree: Tree | None) -> Iterator[str]:
    if isinstance(tree, dict):
        for child in tree["children"]:
            yield from _leaves(child)
    elif tree is not None:
        yield tree


def _fusion_names(tree: Tree | None) -> Iterator[str]:
    if isinstance(tree, dict):
        if tree["type"] == "Fuse":
            yield fusion_name(tree)
        for child in tree["children"]:
            yield from _fusion_names(child)


def fusion_name(tree: Mapping[str, Any]) -> str:
    """The name of a Fuse's fusion layer: its own, or the last adapter of each child joined by commas."""
    own: str | None = tree.get("name")
    return own or ",".join(_last(child) for child in tree["children"])


def _last(tree: Tree) -> str:
    return tree if isinstance(tree, str) else _last(tree["children"][-1])
