"""Which adapters each row of a batch goes through, and what that means at every place that takes adapters.

A row is one sequence under way; a sample has one, or one per result of its `Parallel`. Rows of equal route lie next to
each other and form a group; at a place, a group is worked on at once if its route has anything there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

from server.composition import Fuse, Leaf, Node, Split, Stack, first_leaf, leaves, replaced
from server.model.weights import (
    BottleneckWeights,
    CouplingWeights,
    DeltaWeights,
    EditsWeights,
    FusionWeights,
    PrefixWeights,
    PromptWeights,
    SlotWeights,
)
from server.primitives import BottleneckStyle, Projection, SiteKind

Span = tuple[int, int]


class Slots(Protocol):
    """Weights by slot."""

    def __getitem__(self, slot: int) -> SlotWeights: ...


@dataclass(frozen=True, slots=True)
class Route:
    """What one row goes through: a tree whose leaves are slots, None for the base alone, and layers that sit out."""

    node: Node | None
    skip_layers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Neighbouring tokens start..end that take the same bottleneck; `samples` are the bounds of each row in it."""

    start: int
    end: int
    weights: BottleneckWeights
    samples: tuple[Span, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Neighbouring segments of one style: their elementwise steps are done together."""

    style: BottleneckStyle
    start: int
    end: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Neighbouring rows of one composition at a site: leaves and fusions by slot."""

    start: int
    end: int
    node: Node
    samples: tuple[Span, ...]
    weights: dict[int, BottleneckWeights]
    fusions: dict[int, FusionWeights]


@dataclass(frozen=True, slots=True, eq=False)
class DeltaGroup:
    """Neighbouring rows of one composition at a projection."""

    start: int
    end: int
    node: Node
    samples: tuple[Span, ...]
    weights: dict[int, DeltaWeights]

    @property
    def only(self) -> DeltaWeights | None:
        """The weights where there is one adapter and no composition."""
        return self.weights[_slot(self.node)] if isinstance(self.node, Leaf) else None


@dataclass(frozen=True, slots=True, eq=False)
class PrefixGroup:
    """Neighbouring rows with the same prefixes, in the order in which they stand before a row's own keys."""

    samples: tuple[Span, ...]
    prefixes: tuple[PrefixWeights, ...]


SitePlan = Sequence[Run | Tree]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Neighbouring rows of one route; `only` is the adapter of routes that are nothing but one."""

    route: Route
    samples: tuple[Span, ...]
    start: int
    end: int
    only: SlotWeights | None


class RoutingPlan:
    """The routes of all rows of one batch. Computed on the host; answers are remembered for the pass.

    routes   N routes, equal ones next to each other
    spans    N pairs: first and past-the-end token of each row
    groups   those rows that have adapters, by rising position
    """

    def __init__(self, slots: Slots, routes: Sequence[Route], spans: Sequence[Span]) -> None:
        self._slots = slots
        pairs = zip(routes, spans, strict=True)
        self.groups = [
            self._group(route, tuple(span for _, span in group))
            for route, group in groupby(pairs, key=lambda pair: pair[0])
            if route.node is not None
        ]
        used = {leaf.adapter: slots[_slot(leaf)] for g in self.groups for leaf in leaves(_node(g))}
        self._has_projections = {at for weights in used.values() for at in weights.projections}
        self._has_prefixes = {layer for weights in used.values() for layer in weights.prefixes}
        self._has_edits = {layer for weights in used.values() for layer in weights.edits}

    def _group(self, route: Route, samples: tuple[Span, ...]) -> Group:
        only = self._slots[_slot(route.node)] if isinstance(route.node, Leaf) else None
        return Group(route, samples, samples[0][0], samples[-1][1], only)

    def site(self, layer: int, kind: SiteKind) -> SitePlan:
        """What happens at one site, by rising position; rows without a module there appear in nothing."""
        blocks: list[list[Segment] | Tree] = []
        for group in self.groups:
            block = self.block(group, layer, kind)
            last = blocks[-1] if blocks else None
            if isinstance(block, Tree):
                blocks.append(block)
            elif block is None:
                continue
            elif (
                isinstance(last, list) and last[-1].end == block.start and last[-1].weights.style == block.weights.style
            ):
                last.append(block)
            else:
                blocks.append([block])
        return [
            block
            if isinstance(block, Tree)
            else Run(block[0].weights.style, block[0].start, block[-1].end, tuple(block))
            for block in blocks
        ]

    def block(self, group: Group, layer: int, kind: SiteKind) -> Segment | Tree | None:
        """What happens to one group at one site."""
        at = (layer, kind)
        if group.only is not None:  # the usual case, and it counts: every group at every site of every pass
            weights = group.only.sites.get(at) if layer not in group.route.skip_layers else None
        else:
            node = self._pruned(group, layer, lambda slot: at in slot.sites)
            if node is not None and not isinstance(node, Leaf):
                return self._tree(group, node, at)
            weights = None if node is None else self._slots[_slot(node)].sites[at]
        return None if weights is None else Segment(group.start, group.end, weights, group.samples)

    def projection(self, layer: int, projection: Projection) -> Sequence[DeltaGroup]:
        """What happens to the output of one projection."""
        if (layer, projection) not in self._has_projections:
            return ()
        found = (self.delta(group, layer, projection) for group in self.groups)
        return [group for group in found if group is not None]

    def delta(self, group: Group, layer: int, projection: Projection) -> DeltaGroup | None:
        """What happens to one group at one projection."""
        at = (layer, projection)
        if at not in self._has_projections:
            return None
        node = self._pruned(group, layer, lambda slot: at in slot.projections)
        if node is None:
            return None
        weights = {_slot(leaf): self._slots[_slot(leaf)].projections[at] for leaf in leaves(node)}
        return DeltaGroup(group.start, group.end, node, group.samples, weights)

    def prefixes(self, layer: int) -> Sequence[PrefixGroup]:
        """Prefixes in one layer; of a stack, the later child's stand in front."""
        if layer not in self._has_prefixes:
            return ()
        found = []
        for group in self.groups:
            node = self._pruned(group, layer, lambda slot: layer in slot.prefixes)
            if node is not None:
                order = [self._slots[_slot(leaf)].prefixes[layer] for leaf in leaves(node)]
                found.append(PrefixGroup(group.samples, tuple(reversed(order))))
        return found

    def edits(self, layer: int) -> Sequence[tuple[tuple[Span, ...], EditsWeights]]:
        """Edits after one layer; of a composition, only the first adapter's."""
        if layer not in self._has_edits:
            return ()
        return [
            (group.samples, edits)
            for group, first in self._first_leaves()
            if layer not in group.route.skip_layers and (edits := first.edits.get(layer)) is not None
        ]

    @cached_property
    def couplings(self) -> Sequence[tuple[Span, CouplingWeights]]:
        """Tokens start..end and the coupling on their embeddings; of a composition, only the first adapter's."""
        return [((group.start, group.end), first.coupling) for group, first in self._first_leaves() if first.coupling]

    @cached_property
    def prompts(self) -> Sequence[tuple[tuple[Span, ...], PromptWeights]]:
        """Prompts of the first adapters. The rows' spans have room for them already."""
        return [(group.samples, first.prompt) for group, first in self._first_leaves() if first.prompt]

    @property
    def is_static(self) -> bool:
        """Whether adapters do nothing but what happens at sites and projections."""
        return not (self._has_prefixes or self._has_edits or self.couplings or self.prompts)

    @cached_property
    def borders(self) -> frozenset[int]:
        """Tokens at which a group begins or ends."""
        return frozenset(edge for group in self.groups for edge in (group.start, group.end))

    def _first_leaves(self) -> list[tuple[Group, SlotWeights]]:
        return [(group, self._slots[_slot(first_leaf(_node(group)))]) for group in self.groups]

    def _pruned(self, group: Group, layer: int, has: Callable[[SlotWeights], bool]) -> Node | None:
        """The group's tree without leaves that have nothing here; a stack of one at the top is that one."""
        if layer in group.route.skip_layers:
            return None
        node = pruned(_node(group), lambda slot: has(self._slots[slot]))
        while isinstance(node, Stack) and len(node.children) == 1:
            node = node.children[0]
        return node

    def _tree(self, group: Group, node: Node, at: tuple[int, SiteKind]) -> Tree:
        weights = {_slot(leaf): self._slots[_slot(leaf)].sites[at] for leaf in leaves(node) if leaf.adapter}
        fusions = {slot: self._slots[slot].fusions[at] for slot in _fusions(node)}
        return Tree(group.start, group.end, node, group.samples, weights, fusions)


def pruned(node: Node, keep: Callable[[int], bool]) -> Node | None:
    """The tree with only the leaves that `keep` wants; in a Split the others pass through, as slot 0."""
    if isinstance(node, Leaf):
        return node if node.adapter and keep(_slot(node)) else None
    children = tuple(pruned(child, keep) for child in node.children)
    kept = tuple(child for child in children if child is not None)
    if not kept:
        return None
    if isinstance(node, Split):
        return Split(tuple(child or Leaf(0) for child in children), node.lengths)
    if isinstance(node, Stack):
        return Stack(kept)
    if isinstance(node, Fuse):
        return Fuse(kept, node.fusion)
    weights = tuple(w for w, child in zip(_weights(node), children, strict=True) if child is not None)
    return type(node)(kept, weights)  # type: ignore[call-arg]


def with_slots(node: Node, slots: Sequence[int]) -> Node:
    """A route's tree, whose leaves are indices of its parts, with the slots of those parts."""
    return replaced(node, lambda part: slots[int(part)])


def _weights(node: Node) -> Sequence[float]:
    return getattr(node, "weights", ())


def _fusions(node: Node) -> list[int]:
    if isinstance(node, Leaf):
        return []
    own = [int(node.fusion)] if isinstance(node, Fuse) else []
    return own + [slot for child in node.children for slot in _fusions(child)]


def _node(group: Group) -> Node:
    assert group.route.node is not None
    return group.route.node


def _slot(leaf: Leaf) -> int:
    return int(leaf.adapter)
