"""Random compositions over a pool of adapters, and which of them have no answer in AdapterHub's library.

Trees are those of `plain`; nothing here comes from the packages under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

from plain import Tree, leaves
from plain_files import Adapter
from plain_methods import LINEARS, SITES, Bottleneck, Delta, members

# what may stand in a block, besides adapters
NESTING: Mapping[str, tuple[str, ...]] = {
    "Stack": ("Fuse", "Split", "Parallel", "Average"),
    "Fuse": ("Stack",),
    "Split": ("Split", "Stack", "Average"),
    "Parallel": ("Stack", "Average"),
    "Average": ("Stack", "Split"),
}
MAX_MEMBERS = 3


class Trees:
    """Draws trees. Most blocks take members of one kind, so that few are refused.

    kinds     adapters that go together, by kind
    fusions   the members of each fusion layer there is, by its name
    """

    def __init__(self, rng: Random, kinds: Mapping[str, Sequence[str]], fusions: Mapping[str, Sequence[str]]) -> None:
        self._rng, self._kinds, self._fusions = rng, kinds, fusions
        self._all = sorted({name for names in kinds.values() for name in names})

    def draw(self, num_tokens: int) -> Tree:
        block = self._rng.choice(["", "", *NESTING])
        return self._block(block, num_tokens, 0) if block else self._rng.choice(self._all)

    def _block(self, block: str, num_tokens: int, depth: int) -> Tree:
        if block == "Fuse":
            return self._fuse(num_tokens, depth)
        kind = self._kinds[self._rng.choice(sorted(self._kinds))] if self._rng.random() < 0.7 else self._all
        count = min(self._rng.randint(1 if block == "Stack" else 2, MAX_MEMBERS), num_tokens)
        sizes = self._sizes(num_tokens, count) if block == "Split" else [num_tokens] * count
        nested = self._rng.randrange(count) if self._rng.random() < 0.5 else None
        children = [
            self._child(block, size, depth) if i == nested else self._rng.choice(kind) for i, size in enumerate(sizes)
        ]
        tree = {"type": block, "children": [child or self._rng.choice(kind) for child in children]}
        if block == "Split":
            tree["splits"] = sizes
        if block == "Average" and self._rng.random() < 0.6:
            tree["weights"] = [round(self._rng.uniform(0.1, 1.5), 2) for _ in range(count)]
            tree["normalize_weights"] = self._rng.random() < 0.7
        return tree

    def _child(self, block: str, num_tokens: int, depth: int) -> Tree:
        """A block that may stand there; below the first level only stacks, and in those nothing but adapters."""
        allowed = NESTING[block] if depth == 0 else ("Stack",) if block != "Stack" else ()
        return self._block(self._rng.choice(allowed), num_tokens, depth + 1) if allowed else None

    def _fuse(self, num_tokens: int, depth: int) -> Tree:
        name = self._rng.choice(sorted(self._fusions))
        children: list[Tree] = list(self._fusions[name])
        if self._rng.random() < 0.4:
            i = self._rng.randrange(len(children))
            children[i] = {"type": "Stack", "children": [self._rng.choice(self._all), children[i]]}
        return {"type": "Fuse", "children": children, "name": name}

    def _sizes(self, total: int, count: int) -> list[int]:
        cuts = sorted(self._rng.sample(range(1, total), count - 1))
        return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def blocks(tree: Tree) -> Iterator[Tree]:
    if isinstance(tree, Mapping):
        yield tree
        for child in tree["children"]:
            yield from blocks(child)


def refusals(
    tree: Tree, adapters: Mapping[str, Adapter], num_layers: int, fusion_sites: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Why the library fails on a tree without Parallel, or answers by accident only.

    fusion_sites   the sites at which each fusion layer has weights
    """
    names = list(leaves(tree))
    layers = range(num_layers)
    sites = {
        (i, site): {name: Bottleneck.at(adapters[name], i, site) for name in names} for i in layers for site in SITES
    }
    deltas = {
        (i, place): {name: Delta.at(adapters[name], i, place) for name in names} for i in layers for place in LINEARS
    }
    for block in blocks(tree):
        yield from _of_block(block, adapters, sites, deltas, fusion_sites)
    if any(block["type"] == "Split" for block in blocks(tree)) and members(adapters[names[0]], "prompt_tuning"):
        yield "Split with a prompt"
    for (_, place), own in deltas.items():
        found = [delta for delta in own.values() if delta is not None]
        count = sum(own[name] is not None for name in names)
        if count > 1:
            if len({delta.is_scale for delta in found}) > 1:
                yield "scale and delta at one Linear"
            elif any(delta.is_dora for delta in found):
                yield "DoRA beside another"
            elif not found[0].is_scale and place in ("intermediate", "output") and _is_chained(tree, own):
                yield "stacked deltas on a Linear that is not square"


def _of_block(
    block: Tree,
    adapters: Mapping[str, Adapter],
    sites: Mapping[tuple[int, str], Mapping[str, Bottleneck | None]],
    deltas: Mapping[tuple[int, str], Mapping[str, Delta | None]],
    fusion_sites: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    kind, names = block["type"], list(leaves(block))
    if kind != "Stack" and any(members(adapters[name], "prefix_tuning") for name in names):
        yield "prefixes in a block that is no stack"
    if kind in ("Fuse", "Split") and any(own[name] for own in deltas.values() for name in names):
        yield "deltas in Fuse or Split"
    for (_, site), own in sites.items():
        if not any(own[name] for name in names):
            continue
        if kind == "Fuse" and own[names[-1]] is None:
            yield "the last member of a Fuse has no module"
        if kind == "Fuse" and site not in fusion_sites[block["name"]]:
            yield "a fusion without weights"
        if kind in ("Average", "Split") and own[names[0]] is None:
            yield "the first member has no module"
    if kind == "Average":
        for here in (*sites.values(), *deltas.values()):
            has = [any(here[name] for name in leaves(child)) for child in block["children"]]
            if any(has) and not all(has):
                yield "an Average with members that have no module"


def _is_chained(tree: Tree, own: Mapping[str, Delta | None]) -> bool:
    return any(
        sum(any(own[name] for name in leaves(child)) for child in block["children"]) > 1
        for block in blocks(tree)
        if block["type"] == "Stack"
    )
