"""What the engine benchmark varies: one axis at a time around a centre, so that every ratio has one cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from loadtest.arrivals import Popularity, Traffic, shares
from loadtest.bench import METHOD

PADDED, BASE_ONLY = "transformers, padded", "base only"
MIXES: tuple[Popularity, ...] = ("identical", "distinct", "uniform", "zipf", "skewed")


@dataclass(frozen=True, slots=True)
class Case:
    """One run: these texts in batches of at most `budget` tokens, with adapters dealt out by `mix`.

    mix       a popularity of `loadtest.arrivals`, BASE_ONLY, or PADDED: plain transformers, without adapters
    lengths   name in `loadtest.workload.LENGTHS`
    """

    mix: str
    num_adapters: int
    method: str
    budget: int
    lengths: str

    @property
    def reference(self) -> Case:
        """The base alone on the same texts in the same batches."""
        return replace(self, mix=BASE_ONLY, num_adapters=0, method="")


@dataclass(frozen=True, slots=True)
class Axis:
    """Cases that are measured in turn, round by round, and what they are told apart by."""

    name: str
    field: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """The centre and the values of each axis. An axis without values is left out."""

    budget: int = 4096
    num_adapters: int = 32
    lengths: str = "log-normal"
    mixes: Sequence[str] = MIXES
    counts: Sequence[int] = (1, 8, 32, 128, 1000)
    methods: Sequence[str] = ("seq_bn", "double_seq_bn", "par_bn", "compacter", "lora", "ia3", "prefix_tuning", "mam")
    widths: Sequence[int] = (4, 16, 64, 256)
    budgets: Sequence[int] = (256, 512, 1024, 2048, 4096, 8192)
    length_names: Sequence[str] = ("log-normal", "all 32", "all 128", "uniform 4-256")

    def with_budget(self, budget: int) -> Grid:
        """The same with one more value of tokens per batch, where that is varied."""
        return replace(self, budgets=sorted({*self.budgets, budget})) if self.budgets else self

    def axes(self, hidden_size: int) -> list[Axis]:
        centre = Case("distinct", self.num_adapters, METHOD, self.budget, self.lengths)
        axes = [
            Axis("adapter mix", "mix", tuple(replace(centre, mix=mix) for mix in self.mixes)),
            Axis("resident adapters, zipf", "num_adapters", tuple(self._zipf(centre, n) for n in self.counts)),
            Axis("method", "method", tuple(replace(centre, method=method) for method in self.methods)),
            Axis("bottleneck width", "method", tuple(self._width(centre, hidden_size, r) for r in self.widths)),
            Axis("tokens per batch", "budget", tuple(case for b in self.budgets for case in self._budget(centre, b))),
            Axis("text lengths", "lengths", tuple(replace(centre, lengths=name) for name in self.length_names)),
        ]
        return [_with_references(axis) for axis in axes if axis.cases]

    def _zipf(self, centre: Case, count: int) -> Case:
        return replace(centre, mix="zipf", num_adapters=count)

    def _width(self, centre: Case, hidden_size: int, width: int) -> Case:
        return replace(centre, method=f"seq_bn[reduction_factor={hidden_size / width:g}]")

    def _budget(self, centre: Case, budget: int) -> tuple[Case, Case]:
        own = replace(centre, budget=budget)
        return replace(own.reference, mix=PADDED), own


QUICK = Grid(
    mixes=("identical", "distinct", "zipf"),
    counts=(32, 1000),
    methods=(),
    widths=(),
    budgets=(512, 2048),
    length_names=(),
)


def _with_references(axis: Axis) -> Axis:
    """Every case's own reference, once, in the same rounds."""
    references = dict.fromkeys(case.reference for case in axis.cases)
    return replace(axis, cases=(*references, *axis.cases))


def deal(case: Case, num_samples: int, rng: Generator) -> list[int | None]:
    """Which adapter each sample asks for: an index, None for none."""
    if case.mix in (BASE_ONLY, PADDED):
        return [None] * num_samples
    if case.mix == "distinct":
        return [i % case.num_adapters for i in range(num_samples)]
    popularity = next(mix for mix in MIXES if mix == case.mix)
    drawn = rng.choice(case.num_adapters, num_samples, p=shares(Traffic(popularity=popularity), case.num_adapters))
    return [int(index) for index in np.atleast_1d(drawn)]
