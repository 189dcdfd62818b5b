"""From samples to the rows of a pass: which sequences run from which layer on, in which order.

A sample whose target has several branches runs as one row as long as its branches agree; at the first layer where they
differ its tokens are copied, once per branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.composition import Node, first_leaf, leaves
from server.core import Encoding, Sample
from server.model.heads import HeadRow
from server.model.packing import Array, Packer, Rows, prompt_span
from server.model.phases import HostPhase
from server.model.routing import Route, RoutingPlan, Slots, pruned, with_slots
from server.model.weights import SlotWeights
from server.primitives import Prompt

Key = tuple[int, int]  # index of a sample, index of its branch


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """One sample in the words of a batch."""

    encoding: Encoding
    routes: tuple[Route, ...]
    prompts: tuple[Prompt | None, ...]
    shifts: tuple[int, ...]  # of position ids
    parts_at: int  # the layer before which its rows part; 0 before the embeddings, num_layers never


class Pass:
    """The phases of one pass and where each result is found at its end.

    phases   at least one
    spans    tokens of each (sample, branch) in the last phase
    """

    def __init__(self, samples: Sequence[_Sample], slots: Slots, num_layers: int, packer: Packer) -> None:
        self._slots, self._packer = slots, packer
        self.samples = samples
        borders = sorted({s.parts_at for s in samples if 0 < s.parts_at < num_layers})
        keys = self._sorted(
            [(i, b) for i, s in enumerate(samples) for b in range(len(s.routes) if not s.parts_at else 1)]
        )
        packed = packer.rows(
            [samples[i].encoding for i, _ in keys],
            [samples[i].prompts[b] for i, b in keys],
            [samples[i].shifts[b] for i, b in keys],
        )
        self.phases = [self._phase(0, keys, packed)]
        origin = None
        for layer in borders:
            keys, packed, gather = self._parted(keys, packed, layer)
            origin = gather if origin is None else origin[gather]
            self.phases.append(self._phase(layer, keys, packed, gather, origin))
        found = dict(zip(keys, packed.spans, strict=True))
        self.num_tokens = packed.num_tokens
        self.spans = {
            (i, b): found.get((i, b)) or found[i, 0] for i, s in enumerate(samples) for b in range(len(s.routes))
        }

    def head_row(self, key: Key, *, is_whole: bool = False) -> HeadRow:
        """What a head has to know of a result's row."""
        sample = self.samples[key[0]]
        node = sample.routes[key[1]].node
        return HeadRow(
            span=self.spans[key],
            encoding=sample.encoding,
            prompt=prompt_span(sample.prompts[key[1]]),
            coupling=self._slots[int(first_leaf(node).adapter)].coupling if node is not None else None,
            is_whole=is_whole,
        )

    def _sorted(self, keys: list[Key]) -> list[Key]:
        """Equal styles, then equal routes, then equal lengths next to each other."""

        def rank(key: Key) -> tuple[int, str, int]:
            sample, route = self.samples[key[0]], self.samples[key[0]].routes[key[1]]
            order = self._slots[int(first_leaf(route.node).adapter)].order if route.node else -1
            return order, repr(route), sample.encoding.num_tokens

        return sorted(keys, key=rank)

    def _phase(
        self, layer: int, keys: Sequence[Key], rows: Rows, gather: Array | None = None, origin: Array | None = None
    ) -> HostPhase:
        plan = RoutingPlan(self._slots, [self.samples[i].routes[b] for i, b in keys], rows.spans)
        return HostPhase(layer, rows, plan, self._packer.prepare(plan, rows.num_tokens), gather, origin)

    def _parted(self, keys: Sequence[Key], packed: Rows, layer: int) -> tuple[list[Key], Rows, Array]:
        """The rows from `layer` on, and the token of the rows before that each of their tokens copies."""
        spans = dict(zip(keys, packed.spans, strict=True))
        parted = self._sorted(
            [
                (i, branch)
                for i, b in keys
                for branch in (range(len(self.samples[i].routes)) if self.samples[i].parts_at == layer else (b,))
            ]
        )
        sources = [spans.get(key) or spans[key[0], 0] for key in parted]
        gather = np.concatenate([np.arange(*span, dtype=np.int64) for span in sources])
        return parted, packed.taken(sources, gather), gather


def plan_pass(
    samples: Sequence[Sample], slots_by_digest: dict[str, int], slots: Slots, num_layers: int, packer: Packer
) -> Pass:
    """Write down the way of every sample through the base."""
    return Pass([_resolved(s, slots_by_digest, slots, num_layers) for s in samples], slots, num_layers, packer)


def plan_alike(encodings: Sequence[Encoding], node: Node | None, slots: Slots, num_layers: int, packer: Packer) -> Pass:
    """The same for inputs that all go one way: results are found at (index, 0).

    node   a tree whose leaves are slots, None for the base alone
    """
    route = Route(node)
    prompt, shift = _prompt(route, slots), _shift(route, slots)
    samples = [_Sample(encoding, (route,), (prompt,), (shift,), num_layers) for encoding in encodings]
    return Pass(samples, slots, num_layers, packer)


def _resolved(sample: Sample, slots_by_digest: dict[str, int], slots: Slots, num_layers: int) -> _Sample:
    target = sample.target
    own = [slots_by_digest[part.digest] for part in target.parts]
    routes = tuple(
        Route(with_slots(branch.node, own) if branch.node is not None else None, target.skip_layers)
        for branch in target.branches
    )
    prompts = tuple(_prompt(route, slots) for route in routes)
    shifts = tuple(_shift(route, slots) for route in routes)
    return _Sample(sample.encoding, routes, prompts, shifts, _parts_at(routes, slots, num_layers))


def _shift(route: Route, slots: Slots) -> int:
    """Every part's prefix takes positions."""
    return sum(slots[int(leaf.adapter)].position_offset for leaf in leaves(route.node)) if route.node else 0


def _prompt(route: Route, slots: Slots) -> Prompt | None:
    if route.node is None:
        return None
    weights = slots[int(first_leaf(route.node).adapter)].prompt
    return weights.prompt if weights else None


def _parts_at(routes: tuple[Route, ...], slots: Slots, num_layers: int) -> int:
    """The first layer that does not do the same for all routes."""
    if len(routes) == 1:
        return num_layers
    firsts = {first_leaf(route.node).adapter if route.node is not None else 0 for route in routes}
    heads = [slots[int(slot)] for slot in firsts if slot]
    if len(firsts) > 1 and any(weights.prompt or weights.coupling for weights in heads):
        return 0
    if len({_shift(route, slots) for route in routes}) > 1:
        return 0
    for layer in range(num_layers):
        here = {_at(route, layer, slots) for route in routes}
        if len(here) > 1:
            return max(layer, 0)
    return num_layers


def _at(route: Route, layer: int, slots: Slots) -> object:
    if route.node is None or layer in route.skip_layers:
        return None
    first = int(first_leaf(route.node).adapter)  # the only one whose edits count, even where it has nothing else
    edits = first if layer in slots[first].edits else 0
    return pruned(route.node, lambda slot: _has(slots[slot], layer)), edits


def _has(weights: SlotWeights, layer: int) -> bool:
    layers = {at[0] for at in (*weights.sites, *weights.projections)}
    return layer in layers or layer in weights.prefixes or layer in weights.edits
