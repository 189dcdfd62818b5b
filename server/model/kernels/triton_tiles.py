"""How packed rows are cut into tiles for the Triton kernels, and the tables that tell each program its work.

Tiles have TILE_WORDS int64 words each: a segment, the first of at most BLOCK_M rows, and the row past the last that the
segment owns. Segments have a fixed number of words, which name an adapter's weights and say nothing about rows: all
launches of a batch share their tiles. Program i of a launch reads tile i, and its segment from the launch's own table.
A tile without rows costs a program that ends at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BLOCK_M = 16  # rows of a tile: the least that tensor cores take, so that short samples waste little
MAX_BLOCK_N = 2048  # output columns that one program holds in registers
VECTOR_BYTES = 16  # the widest load of one thread

TILE_WORDS = 3  # segment, first row, past-the-end row
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """What one launch reads; tensors are int64, on the device.

    tiles      [num_tiles, TILE_WORDS]
    segments   [parts, num_segments, words of a segment]; only projections have more than one part
    alignment  elements of which the addresses and rows of all matrices are multiples
    block_r    units worked on at once
    """

    tiles: Tensor
    segments: Tensor
    alignment: int
    block_r: int


def tiles_of(spans: Sequence[tuple[int, int]], first: int = 0) -> Ints:
    """[num_tiles, TILE_WORDS] for the first and past-the-end row of each segment; segments count from `first`."""
    bounds = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    counts = -((bounds[:, 0] - bounds[:, 1]) // BLOCK_M)
    number = np.repeat(np.arange(len(bounds)), counts)
    within = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([number + first, bounds[number, 0] + BLOCK_M * within, bounds[number, 1]], axis=1)
