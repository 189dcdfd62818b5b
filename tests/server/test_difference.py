from __future__ import annotations

import math

import numpy as np
import pytest

from server.core import BatchInfo, BranchOutput, SampleOutput
from server.difference import difference


def output(*values: object, relations: object = None) -> SampleOutput:
    own = None if relations is None else np.asarray(relations, np.float32)
    branches = tuple(BranchOutput(np.asarray(value, np.float32), own) for value in values)
    return SampleOutput(branches, BatchInfo(1, 1, 1, 1), 0.0, 0.0)


def test_the_largest_of_all_branches_and_arrays_counts_and_is_relative() -> None:
    assert difference(output([1, 2], [3]), output([1, 2], [3])) == 0
    assert difference(output([1, 9], [3]), output([1, 4], [3])) == pytest.approx(1.0)
    assert difference(output([1], [3]), output([1], [7])) == pytest.approx(0.5)
    assert difference(output([1], relations=[[2]]), output([1], relations=[[0]])) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (output([1, 2]), output([1])),
        (output([1, 2]), output([[1, 2]])),
        (output([1]), output([1], relations=[[1]])),
        (output([1], relations=[[1]]), output([1])),
        (output([math.nan]), output([1])),
        (output([1]), output([math.nan])),
        (output([math.inf]), output([math.inf])),
    ],
)
def test_what_cannot_be_compared_is_endlessly_apart(got: SampleOutput, wanted: SampleOutput) -> None:
    assert difference(got, wanted) == math.inf
