"""Which slot each sample takes at each composition step, and what that means at a site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from server.model.slots import BottleneckWeights, SlotWeights
from server.primitives import BottleneckStyle, SiteKind

Span = tuple[int, int]


class Slots(Protocol):
    """Weights by slot."""

    def __getitem__(self, slot: int) -> SlotWeights: ...


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Neighbouring tokens start..end that take the same weights; `samples` are the bounds of each sample in it."""

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


SitePlan = tuple[tuple[Run, ...], ...]  # per composition step


class RoutingPlan:
    """The route of every sample of one batch. Computed on the host, once per batch.

    steps     D x [N]: slot of each sample at each composition step, 0 = pass through
    offsets   [N+1]: where each sample's tokens start
    """

    def __init__(self, bank: Slots, steps: Sequence[Sequence[int]], offsets: Sequence[int]) -> None:
        self.steps = [list(step) for step in steps]
        self._bank = bank
        self._spans = list(zip(offsets, offsets[1:], strict=False))
        self._groups = [self._grouped(step) for step in self.steps]

    def at(self, layer: int, kind: SiteKind) -> SitePlan:
        """The runs at one site, step by step. Samples whose adapter has no module there appear in none."""
        return tuple(tuple(self._runs(groups, layer, kind)) for groups in self._groups)

    def groups(self, step: int = -1) -> list[tuple[int, list[int]]]:
        """(slot, sample indices) of each run of neighbours with one slot."""
        pairs = enumerate(self.steps[step])
        return [(slot, [i for i, _ in group]) for slot, group in groupby(pairs, key=lambda pair: pair[1])]

    def _grouped(self, step: list[int]) -> list[tuple[int, tuple[Span, ...]]]:
        pairs = zip(step, self._spans, strict=True)
        return [
            (slot, tuple(span for _, span in group)) for slot, group in groupby(pairs, key=lambda pair: pair[0]) if slot
        ]

    def _runs(self, groups: list[tuple[int, tuple[Span, ...]]], layer: int, kind: SiteKind) -> list[Run]:
        runs: list[list[Segment]] = []
        for slot, spans in groups:
            weights = self._bank[slot].sites.get((layer, kind))
            if weights is None:
                continue
            segment = Segment(spans[0][0], spans[-1][1], weights, spans)
            last = runs[-1][-1] if runs else None
            if last and last.end == segment.start and last.weights.style == weights.style:
                runs[-1].append(segment)
            else:
                runs.append([segment])
        return [Run(r[0].weights.style, r[0].start, r[-1].end, tuple(r)) for r in runs]
