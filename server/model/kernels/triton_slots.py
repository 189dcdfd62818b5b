"""What the Triton kernels know of one adapter at all its places: made once, when a slot is first used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch

from server.model.kernels.triton_bottleneck import SEGMENT_WORDS as SITE_WORDS
from server.model.kernels.triton_delta import SEGMENT_WORDS as DELTA_WORDS
from server.model.kernels.triton_tiles import Ints
from server.model.kernels.triton_words import Words, bottleneck_words, delta_words
from server.model.weights import BottleneckWeights, DeltaWeights, SlotWeights
from server.primitives import Projection, SiteKind

KINDS = tuple(SiteKind)
PROJECTIONS = tuple(Projection)  # launches take neighbours: query, key and value are the first three


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """One adapter, or one group of rows, at all places of one sort.

    words     [layers, places of a layer, words of a segment], zeros where there is nothing
    left      (layer, place) of what the kernel cannot compute
    width     of the widest
    is_even   whether all are
    """

    words: Ints
    left: frozenset[tuple[int, int]] = frozenset()
    width: int = 0
    is_even: bool = True

    def without(self, layers: frozenset[int]) -> Places:
        words = self.words.copy()
        words[[layer for layer in layers if layer < len(words)]] = 0
        return replace(self, words=words, left=frozenset(at for at in self.left if at[0] not in layers))


@dataclass(frozen=True, slots=True, eq=False)
class SlotPlaces:
    """deltas is None where the adapter has none."""

    sites: Places
    deltas: Places | None

    def without(self, layers: frozenset[int]) -> SlotPlaces:
        return SlotPlaces(self.sites.without(layers), self.deltas and self.deltas.without(layers))


_made: WeakKeyDictionary[SlotWeights, SlotPlaces] = WeakKeyDictionary()  # goes when the slot is freed or written anew


def slot_places(weights: SlotWeights, num_layers: int, dtype: torch.dtype) -> SlotPlaces:
    """An adapter at all its places, for rows of `dtype`."""
    if (places := _made.get(weights)) is None:
        places = _made[weights] = SlotPlaces(
            sites_of(weights.sites.items(), num_layers, dtype),
            deltas_of(weights.projections.items(), num_layers, dtype),
        )
    return places


def sites_of(
    found: Iterable[tuple[tuple[int, SiteKind], BottleneckWeights | None]], num_layers: int, dtype: torch.dtype
) -> Places:
    """`found`: weights by layer and kind; None where the kernel has nothing to do with them."""
    pairs = (
        ((layer, KINDS.index(kind)), bottleneck_words(weights, dtype) if weights is not None else None)
        for (layer, kind), weights in found
    )
    return _places(pairs, np.zeros((num_layers, len(KINDS), SITE_WORDS), dtype=np.int64))


def deltas_of(
    found: Iterable[tuple[tuple[int, Projection], DeltaWeights | None]], num_layers: int, dtype: torch.dtype
) -> Places | None:
    """`found`: weights by layer and projection. None where there are none."""
    pairs = [
        ((layer, PROJECTIONS.index(projection)), _delta_words(weights, dtype)) for (layer, projection), weights in found
    ]
    return _places(pairs, np.zeros((num_layers, len(PROJECTIONS), DELTA_WORDS), dtype=np.int64)) if pairs else None


def _delta_words(weights: DeltaWeights | None, dtype: torch.dtype) -> Words | None:
    """None too where the input is scaled, which has to happen before the product."""
    return None if weights is None or weights.input_scale is not None else delta_words(weights, dtype)


def _places(found: Iterable[tuple[tuple[int, int], Words | None]], table: Ints) -> Places:
    """Fills `table`."""
    left, width, is_even = set(), 0, True
    for at, words in found:
        if words is None:
            left.add(at)
            continue
        table[at] = words.words
        width, is_even = max(width, words.width), is_even and words.is_even
    return Places(table, frozenset(left), width, is_even)
