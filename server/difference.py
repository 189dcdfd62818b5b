"""How far two computations of one sample lie apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.core import BranchOutput, SampleOutput


def tolerance_of(dtype: str) -> float:
    """What rounding explains, where nobody says otherwise: of |difference| / (1 + |wanted|)."""
    return 1e-3 if dtype == "float32" else 0.1


def difference(got: SampleOutput, wanted: SampleOutput) -> float:
    """The largest |got - wanted| / (1 + |wanted|) of everything that both give.

    Endless where they are not of one shape, or where either holds NaN.
    """
    pairs = [
        pair
        for own, other in zip(got.branches, wanted.branches, strict=True)
        for pair in zip(_arrays(own), _arrays(other), strict=True)
    ]
    return max(_apart(a, b) for a, b in pairs)


def _arrays(output: BranchOutput) -> tuple[NDArray[np.float32] | None, ...]:
    return output.values, output.relations, output.hidden, output.pooler


def _apart(got: NDArray[np.float32] | None, wanted: NDArray[np.float32] | None) -> float:
    if got is None and wanted is None:
        return 0.0
    if got is None or wanted is None or got.shape != wanted.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):  # of endless numbers, which give NaN here
        apart = float(np.max(np.abs(got - wanted) / (1 + np.abs(wanted)), initial=0.0))
    return float("inf") if np.isnan(apart) else apart
