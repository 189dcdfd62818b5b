"""Who asks for which adapter: sequences of numbers from 0 to `num`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Sequence = NDArray[np.int64]
NUM_SHIFTS = 8


def uniform(num: int, length: int, rng: Generator) -> Sequence:
    return rng.integers(0, num, length)


def zipf(num: int, length: int, rng: Generator, exponent: float) -> Sequence:
    """The k-th most popular one in proportion to k^-exponent; which one that is, is drawn too."""
    shares = 1 / np.arange(1, num + 1) ** exponent
    return rng.permutation(num)[rng.choice(num, size=length, p=shares / shares.sum())]


def scan(num: int, length: int, rng: Generator) -> Sequence:
    """Zipf, and after every 2 * num requests each adapter once: a nightly job over all tenants."""
    popular, parts = zipf(num, length, rng, 1.0), list[Sequence]()
    for start in range(0, length, 2 * num):
        parts += [popular[start : start + 2 * num], rng.permutation(num)]
    return np.concatenate(parts)[:length]


def shifting(num: int, length: int, rng: Generator) -> Sequence:
    """Zipf whose popular ones are others after each eighth."""
    return np.concatenate([zipf(num, -(-length // NUM_SHIFTS), rng, 1.0) for _ in range(NUM_SHIFTS)])[:length]


POPULARITY: Mapping[str, Callable[[int, int, Generator], Sequence]] = {
    "uniform": uniform,
    "zipf 0.9": lambda num, length, rng: zipf(num, length, rng, 0.9),
    "zipf 1.1": lambda num, length, rng: zipf(num, length, rng, 1.1),
    "zipf with scans": scan,
    "shifting zipf": shifting,
}
