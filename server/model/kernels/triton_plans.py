"""All launches of a pass, prepared at once.

The segments of a batch are its groups of rows and what lies between them, the same at every place; so are tiles.
What a place adds are the words of each segment there, which are gathered from tables that are made once per slot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.kernels.triton_slots import (
    KINDS,
    PROJECTIONS,
    Places,
    SlotPlaces,
    deltas_of,
    sites_of,
    slot_places,
)
from server.model.kernels.triton_tiles import BLOCK_M, TILE_WORDS, Ints, Table, tiles_of
from server.model.kernels.triton_words import alignment, block_r
from server.model.launches import LaunchedDeltas, LaunchedSite
from server.model.routing import DeltaGroup, Group, RoutingPlan, Run, Segment, Span, Tree
from server.primitives import Projection, SiteKind

Place = tuple[int, int]  # layer, number of the kind or projection


@dataclass(frozen=True, slots=True, eq=False)
class Sort:
    """All places of one sort in a batch, sites or projections.

    words       [layers, places of a layer, segments, words of a segment]
    has         [layers, places of a layer] whether any segment has something there
    others      what the launch at a place leaves out
    alignment, block_r   of all launches
    """

    words: Ints
    has: NDArray[np.bool_]
    others: dict[Place, list[Group]]
    alignment: int
    block_r: int

    @property
    def variant(self) -> object:
        return self.has.tobytes(), self.alignment, self.block_r

    def padded(self, num_segments: int) -> Sort:
        """With empty segments. What some layer has counts for all: fewer variants, some programs that end at once."""
        words = np.pad(self.words, ((0, 0), (0, 0), (0, num_segments - self.words.shape[2]), (0, 0)))
        has = np.broadcast_to(self.has.any(axis=0), self.has.shape)
        return replace(self, words=words, has=has)


class TritonPrepared:
    """See `Prepared`: tables on the host. All rows are covered, by the base alone where there is nothing else."""

    def __init__(self, plan: RoutingPlan, num_rows: int, num_layers: int, dtype: torch.dtype) -> None:
        self.plan, self.num_rows, self.dtype = plan, num_rows, dtype
        segments = list(_segments(plan.groups, num_rows))
        groups = [group for _, group in segments]
        nothing = SlotPlaces(sites_of((), num_layers, dtype), None)
        places = [_group_places(plan, group, num_layers, dtype) if group else nothing for group in groups]
        self.tiles = tiles_of([span for span, _ in segments])
        self.sites = _sort([place.sites for place in places], groups, dtype)
        deltas = [place.deltas for place in places]
        empty = next((Places(np.zeros_like(own.words)) for own in deltas if own is not None), None)
        self.deltas = _sort([own or empty for own in deltas], groups, dtype) if empty is not None else None

    @property
    def arrays(self) -> Sequence[Ints]:
        return [self.tiles, self.sites.words] + ([] if self.deltas is None else [self.deltas.words])

    @property
    def is_whole(self) -> bool:
        return not self.sites.others and (self.deltas is None or not self.deltas.others)

    @property
    def variant(self) -> object:
        return self.sites.variant, self.deltas and self.deltas.variant

    def padded(self, num_rows: int, num_segments: int) -> TritonPrepared:
        """See `Prepared`: one segment more for the rows that are missing, the rest of segments and tiles empty."""
        num_own = self.sites.words.shape[2]
        assert self.num_rows <= num_rows and num_own < num_segments
        tiles = np.zeros((num_rows // BLOCK_M + num_segments, TILE_WORDS), dtype=np.int64)
        own = np.concatenate([self.tiles, tiles_of([(self.num_rows, num_rows)], first=num_own)])
        tiles[: len(own)] = own
        larger = copy(self)
        larger.num_rows, larger.tiles, larger.sites = num_rows, tiles, self.sites.padded(num_segments)
        larger.deltas = self.deltas and self.deltas.padded(num_segments)
        return larger

    def on(self, tensors: Sequence[Tensor]) -> TritonLaunches:
        """`tensors` are the arrays on the device."""
        return TritonLaunches(self, *tensors)


def _segments(groups: Sequence[Group], num_rows: int) -> Iterator[tuple[Span, Group | None]]:
    """The rows of each group, and those between groups."""
    position = 0
    for group in groups:
        if position < group.start:
            yield (position, group.start), None
        yield (group.start, group.end), group
        position = group.end
    if position < num_rows:
        yield (position, num_rows), None


def _group_places(plan: RoutingPlan, group: Group, num_layers: int, dtype: torch.dtype) -> SlotPlaces:
    if group.only is not None:
        own = slot_places(group.only, num_layers, dtype)
        return own.without(group.route.skip_layers) if group.route.skip_layers else own
    layers = range(num_layers)
    blocks = {(layer, kind): plan.block(group, layer, kind) for layer in layers for kind in KINDS}
    deltas = {(layer, p): plan.delta(group, layer, p) for layer in layers for p in PROJECTIONS}
    sites = {at: block.weights if isinstance(block, Segment) else None for at, block in blocks.items() if block}
    own_deltas = {at: delta.only for at, delta in deltas.items() if delta is not None}
    return SlotPlaces(sites_of(sites.items(), num_layers, dtype), deltas_of(own_deltas.items(), num_layers, dtype))


def _sort(places: Sequence[Places], groups: Sequence[Group | None], dtype: torch.dtype) -> Sort:
    words = np.stack([own.words for own in places], axis=2)
    others: defaultdict[Place, list[Group]] = defaultdict(list)
    for own, group in zip(places, groups, strict=True):
        for at in own.left:
            assert group is not None
            others[at].append(group)
    has: NDArray[np.bool_] = np.any(words, axis=(2, 3))
    for at in others:
        has[at] = True
    is_even, width = all(own.is_even for own in places), max(own.width for own in places)
    return Sort(words, has, others, alignment(is_even, dtype), block_r(width, dtype))


class TritonLaunches:
    """See `Launches`."""

    def __init__(self, host: TritonPrepared, tiles: Tensor, sites: Tensor, deltas: Tensor | None = None) -> None:
        self._host, self._plan = host, host.plan
        self._tiles, self._sites, self._deltas = tiles, sites, deltas

    def site(self, layer: int, kind: SiteKind) -> LaunchedSite:
        sort, at = self._host.sites, (layer, KINDS.index(kind))
        others = [self._block(group, layer, kind) for group in sort.others.get(at, ())]
        launch = Table(self._tiles, self._sites[at][None], sort.alignment, sort.block_r)
        return LaunchedSite((self, launch), others, not sort.has[at], partial(self._plan.site, layer, kind))

    def _block(self, group: Group, layer: int, kind: SiteKind) -> Run | Tree:
        block = self._plan.block(group, layer, kind)
        assert block is not None
        return block if isinstance(block, Tree) else Run(block.weights.style, block.start, block.end, (block,))

    def deltas(self, layer: int, projection: Projection) -> Sequence[DeltaGroup]:
        sort, number = self._host.deltas, PROJECTIONS.index(projection)
        if sort is None or not sort.has[layer, number]:
            return ()
        found = [self._plan.delta(group, layer, projection) for group in sort.others.get((layer, number), ())]
        others = [group for group in found if group is not None]
        groups = partial(self._plan.projection, layer, projection)
        if any(weights.input_scale is not None for group in others for weights in group.weights.values()):
            return groups()
        return LaunchedDeltas((self, layer), number, others, groups)

    def fits(self, num_rows: int, dtype: torch.dtype) -> bool:
        return (num_rows, dtype) == (self._host.num_rows, self._host.dtype)

    def delta_table(self, layer: int, first: int, end: int) -> Table:
        """Of the projections from `first` to before `end`, side by side."""
        sort = self._host.deltas
        assert sort is not None and self._deltas is not None
        return Table(self._tiles, self._deltas[layer, first:end], sort.alignment, sort.block_r)


def site_launch(plan: LaunchedSite, num_rows: int, dtype: torch.dtype) -> Table | None:
    """The launch of a site, None where it was prepared for other rows than these."""
    launches, table = plan.launch
    return table if launches.fits(num_rows, dtype) else None


def delta_launch(parts: Sequence[Sequence[DeltaGroup]], num_rows: int, dtype: torch.dtype) -> Table | None:
    """The one launch of all parts, None where they are not prepared, or not as neighbours on these rows."""
    known = {i: part for i, part in enumerate(parts) if isinstance(part, LaunchedDeltas)}
    if not known or any(part for i, part in enumerate(parts) if i not in known):
        return None
    launches, layer = next(iter(known.values())).launch
    firsts = {part.number - i for i, part in known.items()}
    if len(firsts) > 1 or not launches.fits(num_rows, dtype):
        return None
    [first] = firsts
    return launches.delta_table(layer, first, first + len(parts))  # type: ignore[no-any-return]
