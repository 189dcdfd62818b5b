"""From a composition and the adapters it names to the target of a sample, or a refusal with a reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from server.composition import (
    Average,
    Fuse,
    Leaf,
    Node,
    Split,
    Stack,
    branches,
    first_leaf,
    fuses,
    last_leaf,
    leaves,
    replaced,
    text_of,
)
from server.core import Adapter, Branch, Target, own_head, target_of
from server.errors import AdapterNotFound, InvalidInput, UnsupportedConfig
from server.primitives import AdapterSpec, Delta, Projection, SiteKind


def make_target(
    tree: Node | None,
    adapters: Mapping[str, Adapter],
    fusions: Mapping[str, Adapter],
    heads: Sequence[str] = (),
    skip_layers: Iterable[int] = (),
) -> Target:
    """What a sample goes through.

    tree       None for the base alone
    adapters   by the names that stand in the tree and in `heads`
    fusions    by the names that the Fuse nodes have
    heads      names of heads instead of the usual one: one for all results, or one per result; several on one result
               give as many answers. A head may be any part's, or that of another adapter by the adapter's name
    raises     InvalidInput, AdapterNotFound (a head), UnsupportedConfig for what the library refuses
    """
    skipped = frozenset(skip_layers)
    if isinstance(tree, Leaf) and not heads and not skipped:
        return target_of(adapters[str(tree.adapter)])
    parts = _Parts(adapters, fusions)
    trees = branches(tree) if tree is not None else []
    for branch in trees:
        _check(branch, adapters, fusions)
    placed: list[tuple[Node | None, Node | None]] = [(branch, parts.placed(branch)) for branch in trees]
    placed = placed or [(None, None)]
    chosen = _with_heads(placed, heads, parts)
    digest = _digest(chosen, parts.all, skipped)
    return Target(digest, tuple(parts.all), tuple(chosen), skipped)


class _Parts:
    """The distinct adapters and fusions of a target, in the order in which they are met."""

    def __init__(self, adapters: Mapping[str, Adapter], fusions: Mapping[str, Adapter]) -> None:
        self.adapters, self._fusions = adapters, fusions
        self.all: list[Adapter] = []
        self._index: dict[str, int] = {}

    def placed(self, tree: Node) -> Node:
        """The tree with indices of parts in place of names."""
        for node in fuses(tree):
            self.index(self._fusions[str(node.fusion)])
        return replaced(
            tree,
            lambda name: self.index(self.adapters[str(name)]),
            lambda name: self.index(self._fusions[str(name)]),
        )

    def index(self, adapter: Adapter) -> int:
        if adapter.digest not in self._index:
            self._index[adapter.digest] = len(self.all)
            self.all.append(adapter)
        return self._index[adapter.digest]

    def head(self, name: str, node: Node | None) -> tuple[int, int]:
        """The part that has a head of this name, the branch's own from the last to the first before all others.

        Else the adapter of this name with its own head.
        """
        own = [int(leaf.adapter) for leaf in leaves(node)][::-1] if node is not None else []
        for index in [*own, *range(len(self.all))]:
            names = [head.name for head in self.all[index].spec.all_heads]
            if name in names:
                return index, names.index(name)
        if name in self.adapters and (head := own_head(self.adapters[name])) is not None:
            return self.index(self.adapters[name]), head
        known = sorted({head.name for part in self.all for head in part.spec.all_heads})
        raise AdapterNotFound(f"no head {name!r}; the adapters here have: {', '.join(known) or 'none'}", head=name)


def _with_heads(placed: Sequence[tuple[Node | None, Node | None]], heads: Sequence[str], parts: _Parts) -> list[Branch]:
    if not heads:
        return [Branch(node, _own_head(tree, parts)) for tree, node in placed]
    if len(placed) == 1:
        return [Branch(placed[0][1], parts.head(name, placed[0][1])) for name in heads]
    if len(heads) not in (1, len(placed)):
        raise InvalidInput(f"{len(heads)} heads for {len(placed)} results; name one head, or one per result")
    names = list(heads) * len(placed) if len(heads) == 1 else heads
    return [Branch(node, parts.head(name, node)) for (_, node), name in zip(placed, names, strict=True)]


def _own_head(tree: Node | None, parts: _Parts) -> tuple[int, int] | None:
    """The head named like the last adapter of a stack; other compositions have none unless one is named."""
    while isinstance(tree, Stack):
        tree = tree.children[-1]
    if not isinstance(tree, Leaf):
        return None
    adapter = parts.adapters[str(tree.adapter)]
    head = own_head(adapter)
    return None if head is None else (parts.index(adapter), head)


def _digest(chosen: Sequence[Branch], parts: Sequence[Adapter], skipped: frozenset[int]) -> str:
    whole = hashlib.sha256()
    for branch in chosen:
        whole.update(f"{branch.node!r} {branch.head}\n".encode())  # weights, lengths and fusions are in it
    for part in parts:
        whole.update(f"{part.digest}\n".encode())
    whole.update(f"{sorted(skipped)}".encode())
    return whole.hexdigest()


def _check(tree: Node, adapters: Mapping[str, Adapter], fusions: Mapping[str, Adapter]) -> None:
    """Refuse what the library refuses, and what it computes by accident only."""
    specs = {str(leaf.adapter): adapters[str(leaf.adapter)].spec for leaf in leaves(tree)}
    for node in _blocks(tree):
        names = [str(leaf.adapter) for leaf in leaves(node)]
        own = type(node).__name__
        for name in names:
            spec = specs[name]
            if isinstance(node, Fuse | Split) and spec.projections:
                raise UnsupportedConfig(f"{own} takes bottleneck adapters; {name!r} adapts projections")
            if not isinstance(node, Stack) and spec.prefixes:
                raise UnsupportedConfig(f"{own} does not take prefixes, and {name!r} has some")
        if isinstance(node, Fuse):
            _check_fusion(node, specs, fusions)
        elif not isinstance(node, Stack):
            if isinstance(node, Average):
                _check_average(node, specs)
            first = str(first_leaf(node).adapter)
            missing = {at for name in names for at in specs[name].sites} - specs[first].sites.keys()
            if missing:
                layer, kind = min(missing, key=lambda at: (at[0], at[1].value))
                raise UnsupportedConfig(
                    f"{own} starts with {first!r}, which has no module at the {kind.value} of layer {layer},"
                    " where others do"
                )
        if isinstance(node, Split) and specs[str(first_leaf(tree).adapter)].prompt:
            raise UnsupportedConfig("Split does not go with prompt tuning, which lengthens the sequence")
    _check_projections(tree, specs)


def _blocks(node: Node) -> list[Node]:
    if isinstance(node, Leaf):
        return []
    return [node, *(block for child in node.children for block in _blocks(child))]


def _check_average(node: Average, specs: Mapping[str, AdapterSpec]) -> None:
    """The library's mean over the members that are there goes wrong, or fails, as soon as one is not."""
    owned = [_places(child, specs) for child in node.children]
    for child, places in zip(node.children, owned, strict=True):
        missing = set().union(*owned) - places
        if missing:
            layer, kind = min(missing, key=lambda at: (at[0], at[1].value))
            raise UnsupportedConfig(
                f"{text_of(child)} of an Average has no module at the {kind.value} of layer {layer}, where another has"
                " one; average adapters of one kind"
            )


def _places(node: Node, specs: Mapping[str, AdapterSpec]) -> set[tuple[int, SiteKind | Projection]]:
    """The sites and projections at which some adapter of a tree has a module."""
    places: set[tuple[int, SiteKind | Projection]] = set()
    for leaf in leaves(node):
        spec = specs[str(leaf.adapter)]
        places.update(spec.sites)
        places.update(spec.projections)
    return places


def _check_fusion(node: Fuse, specs: Mapping[str, AdapterSpec], fusions: Mapping[str, Adapter]) -> None:
    fusion = fusions[str(node.fusion)].spec.fusion
    if fusion is None:
        raise UnsupportedConfig(f"{node.fusion!r} is no fusion layer")
    last = str(last_leaf(node).adapter)
    last_sites = specs[last].sites.keys()
    for name in (str(leaf.adapter) for leaf in leaves(node)):
        for at in specs[name].sites:
            if at not in fusion.sites:
                raise UnsupportedConfig(
                    f"fusion {node.fusion!r} has no weights at the {at[1].value} of layer {at[0]},"
                    f" where {name!r} has a module"
                )
            if at not in last_sites:
                raise UnsupportedConfig(
                    f"the last member {last!r} of a Fuse has no module at the {at[1].value} of layer {at[0]},"
                    f" where {name!r} has one"
                )


def _check_projections(tree: Node, specs: Mapping[str, AdapterSpec]) -> None:
    """Several deltas on one projection go together only if they are of one plain kind."""
    at: dict[tuple[int, Projection], list[Delta]] = {}
    for leaf in leaves(tree):
        for place, delta in specs[str(leaf.adapter)].projections.items():
            at.setdefault(place, []).append(delta)
    for (layer, projection), deltas in at.items():
        if len(deltas) < 2:
            continue
        if projection is Projection.QKV:
            raise UnsupportedConfig("low-rank adapters of a fused query, key and value projection cannot be composed")
        if len({delta.is_scale for delta in deltas}) > 1:
            raise UnsupportedConfig(
                f"a scale and a low-rank delta meet at the {projection.value} of layer {layer}; compose one kind"
            )
        if any(delta.input_scale or delta.bias for delta in deltas):
            raise UnsupportedConfig(
                f"PEFT adapters with biases or input scales meet at the {projection.value} of layer {layer}"
            )
        if any(delta.channel is not None and not delta.is_scale for delta in deltas):
            raise UnsupportedConfig(f"weight-decomposed adapters meet at the {projection.value} of layer {layer}")
        down, up = deltas[0].down, deltas[0].up
        is_square = down is None or up is None or down.shape[1] == up.shape[0]
        if not is_square and any(_is_chained(node, (layer, projection), specs) for node in _blocks(tree)):
            raise UnsupportedConfig(
                f"low-rank adapters are stacked at the {projection.value} projection of layer {layer}: the second would"
                " read what the first gives, which has another size"
            )


def _is_chained(node: Node, at: tuple[int, Projection], specs: Mapping[str, AdapterSpec]) -> bool:
    """Whether several children of a stack have a delta at this projection."""
    return isinstance(node, Stack) and sum(at in _places(child, specs) for child in node.children) > 1
