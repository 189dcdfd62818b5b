"""Compositions as saved setups hold them -> the tree that a request would ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from server.composition import Average, Fuse, Leaf, Node, Parallel, Split, Stack, average_weights, fusion_name
from server.errors import UnsupportedConfig
from server.expression import split_lengths


def node_of(tree: Any, rename: Callable[[str], str] = str) -> Node:
    """The tree of a setup, with every name of an adapter or fusion renamed. Raises UnsupportedConfig, InvalidInput."""
    if isinstance(tree, str):
        return Leaf(rename(tree))
    children, kind = tuple(node_of(child, rename) for child in tree["children"]), tree["type"]
    if kind == "Fuse":
        return Fuse(children, rename(tree.get("name") or _own_name(tree)))
    if kind == "Average":
        normalize = tree.get("normalize_weights", True)
        return Average(children, average_weights(tree.get("weights"), len(children), normalize=normalize))
    if kind == "Split":
        lengths = tree["splits"]
        return Split(children, split_lengths(lengths if isinstance(lengths, list) else [lengths], len(children)))
    if kind not in ("Stack", "Parallel"):
        raise UnsupportedConfig(f"{kind} routes the rows of a batch; here every request names its own adapter instead")
    return Stack(children) if kind == "Stack" else Parallel(children)


def _own_name(fuse: Mapping[str, Any]) -> str:
    return fusion_name(tuple(node_of(child) for child in fuse["children"]))
