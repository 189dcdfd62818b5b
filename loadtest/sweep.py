"""The highest rate that holds an objective, found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable

GROWTH = 1.5  # of the rate from one step to the next, until one does not hold
PRECISION = 0.05  # a rate that holds and one that does not lie this close in the end
LOWEST = 1e-3  # of the rate to start with: below it nothing is going to hold


def highest_rate(holds: Callable[[float], bool], start: float, is_time_up: Callable[[], bool]) -> float:
    """Grow or shrink geometrically, then bisect; 0 if nothing held before the time was up. Tries one rate at least.

    What is found has held twice: one lucky window is no proof, so a rate that does not hold again makes room for the
    next lower one that did.
    """
    held: list[float] = []
    missed = math.inf
    rate = start
    while rate > start * LOWEST:
        if holds(rate):
            held.append(rate)
        else:
            missed = rate
        best = max(held, default=0.0)
        if is_time_up() or (best and missed <= best * (1 + PRECISION)):
            break
        rate = _next(best, missed)
    return _confirmed(holds, sorted(held, reverse=True), is_time_up)


def _next(best: float, missed: float) -> float:
    if missed == math.inf:
        return best * GROWTH
    return math.sqrt(best * missed) if best else missed / GROWTH


def _confirmed(holds: Callable[[float], bool], held: list[float], is_time_up: Callable[[], bool]) -> float:
    """The first of them that holds again. The lowest needs no second proof: there is none below to fall back on."""
    for rate in held[:-1]:
        if is_time_up() or holds(rate):
            return rate
    return held[-1] if held else 0.0
