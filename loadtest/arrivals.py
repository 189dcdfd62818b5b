"""Who asks for which adapter with which text, and when. All of it is drawn before the first request is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Arrivals = Literal["poisson", "bursts"]
Popularity = Literal["uniform", "zipf", "skewed", "identical", "distinct"]
SKEWED_SHARE = 0.9  # of the requests for the most popular adapter of "skewed"; the others share the rest


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one tenant sends.

    share        of the rate of the whole schedule
    arrivals     "poisson": independent of each other. "bursts": at the times of a Poisson process several at once, as
                 many as a geometric distribution of mean `burst_size` says; the rate is the same
    popularity   "uniform"; "zipf": the adapter of rank k is asked for in proportion to k ** -exponent; "skewed": one
                 adapter gets nine requests in ten; "identical": one gets all; "distinct": all in turn
    churn        every `churn_every_s` seconds, 0 for never, the most popular `churn_share` of the adapters change
                 places with others drawn at random
    cold         this share of the requests asks for adapters that nobody else asks for, in turn: see `Catalog`
    """

    tenant: str = "all"
    share: float = 1.0
    arrivals: Arrivals = "poisson"
    burst_size: float = 16.0
    popularity: Popularity = "zipf"
    exponent: float = 1.0
    churn_every_s: float = 0.0
    churn_share: float = 0.1
    cold: float = 0.0


@dataclass(frozen=True, slots=True)
class Catalog:
    """How much there is to ask for. Cold adapters have the indices from `num_adapters` on."""

    num_adapters: int
    num_cold: int
    num_texts: int


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """N requests by time, as columns [N].

    at_s       seconds from the start
    adapter    index in the catalog
    text       index in the catalog
    tenant     index in `tenants`
    """

    tenants: tuple[str, ...]
    at_s: NDArray[np.float64]
    adapter: NDArray[np.int64]
    text: NDArray[np.int64]
    tenant: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.at_s)

    def part(self, index: int, num_parts: int) -> Schedule:
        """Every `num_parts`-th request, from `index` on."""
        own = slice(index, None, num_parts)
        return Schedule(self.tenants, self.at_s[own], self.adapter[own], self.text[own], self.tenant[own])


def schedule(traffics: Sequence[Traffic], rate: float, seconds: float, catalog: Catalog, seed: int) -> Schedule:
    """The requests of all tenants in `seconds`, `rate` of them a second. The same arguments give the same schedule."""
    total = sum(traffic.share for traffic in traffics)
    drawn = [
        _draw(traffic, index, rate * traffic.share / total, seconds, catalog, np.random.default_rng([seed, index]))
        for index, traffic in enumerate(traffics)
    ]
    order = np.argsort(np.concatenate([part.at_s for part in drawn]), kind="stable")
    return Schedule(
        tuple(traffic.tenant for traffic in traffics),
        np.concatenate([part.at_s for part in drawn])[order],
        np.concatenate([part.adapter for part in drawn])[order],
        np.concatenate([part.text for part in drawn])[order],
        np.concatenate([part.tenant for part in drawn])[order],
    )


def _draw(traffic: Traffic, index: int, rate: float, seconds: float, catalog: Catalog, rng: Generator) -> Schedule:
    at_s = _times(traffic, rate, seconds, rng)
    num = len(at_s)
    adapter = _adapters(traffic, at_s, catalog.num_adapters, rng)
    is_cold = rng.random(num) < (traffic.cold if catalog.num_cold else 0.0)
    adapter[is_cold] = catalog.num_adapters + np.arange(is_cold.sum()) % max(catalog.num_cold, 1)
    text = rng.integers(catalog.num_texts, size=num)
    return Schedule((), at_s, adapter, text, np.full(num, index))


def _times(traffic: Traffic, rate: float, seconds: float, rng: Generator) -> NDArray[np.float64]:
    """A Poisson process, given how many arrive: each anywhere, independently. So all runs at a rate are as large."""
    num = round(rate * seconds)
    if traffic.arrivals == "poisson":
        return np.sort(rng.random(num) * seconds)
    sizes = rng.geometric(1 / traffic.burst_size, size=num)
    num_bursts = int(np.searchsorted(np.cumsum(sizes), num)) + 1
    starts = np.sort(rng.random(num_bursts) * seconds)
    return np.repeat(starts, sizes[:num_bursts])[:num]


def _adapters(traffic: Traffic, at_s: NDArray[np.float64], num: int, rng: Generator) -> NDArray[np.int64]:
    if traffic.popularity == "distinct":
        ranks = np.arange(len(at_s)) % num
    else:
        ranks = rng.choice(num, size=len(at_s), p=shares(traffic, num))
    holders = np.arange(num)  # of the ranks
    if not traffic.churn_every_s:
        return holders[ranks]
    adapters = np.empty_like(ranks)
    period = (at_s // traffic.churn_every_s).astype(np.int64)
    for number in range(int(period.max(initial=0)) + 1):
        adapters[period == number] = holders[ranks[period == number]]
        holders = _churned(holders, traffic.churn_share, rng)
    return adapters


def shares(traffic: Traffic, num: int) -> NDArray[np.float64]:
    """Of the requests, by rank."""
    weights: NDArray[np.float64] = np.ones(num)
    if traffic.popularity == "zipf":
        weights = np.arange(1, num + 1, dtype=np.float64) ** np.float64(-traffic.exponent)
    elif traffic.popularity == "identical":
        weights = (np.arange(num) == 0).astype(np.float64)
    elif traffic.popularity == "skewed" and num > 1:
        weights = np.full(num, (1 - SKEWED_SHARE) / (num - 1))
        weights[0] = SKEWED_SHARE
    total: float = weights.sum()
    return weights / total


def _churned(holders: NDArray[np.int64], share: float, rng: Generator) -> NDArray[np.int64]:
    """The first ranks change places with as many others."""
    num_moved = min(max(1, round(share * len(holders))), len(holders) // 2)
    others = num_moved + rng.permutation(len(holders) - num_moved)[:num_moved]
    changed = holders.copy()
    changed[:num_moved], changed[others] = holders[others], holders[:num_moved]
    return changed
