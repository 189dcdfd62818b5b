"""How packed rows are cut into tiles for the Triton kernels, and the tables that tell each program its work.

A kernel gets one int64 table per launch, uploaded once: first the tiles, two words each, then the segments, a fixed
number of words each. Program i of a launch reads tile i, which names a segment and the first of its BLOCK_M rows; the
segment names the past-the-end row and the addresses of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_M = 16  # rows of a tile: the least that tensor cores take, so that short samples waste little
MAX_BLOCK_N = 2048  # output columns that one program holds in registers
VECTOR_BYTES = 16  # the widest load of one thread

TILE_WORDS = 2


@dataclass(frozen=True, slots=True)
class Table:
    """words [num_tiles * TILE_WORDS + num_segments * words of a segment] int64, on the device."""

    words: Tensor
    num_tiles: int


def table(spans: Sequence[tuple[int, int]], segments: Sequence[Sequence[int]], device: torch.device) -> Table:
    """The table of one launch.

    spans      first and past-the-end row of each segment
    segments   the words of each segment
    """
    words: list[int] = []
    for number, (start, end) in enumerate(spans):
        for first in range(start, end, BLOCK_M):
            words += (number, first)
    num_tiles = len(words) // TILE_WORDS
    for segment in segments:
        words += segment
    host = torch.tensor(words, dtype=torch.int64, pin_memory=device.type == "cuda")
    return Table(host.to(device, non_blocking=True), num_tiles)


def address(tensor: Tensor | None) -> int:
    """Where a contiguous tensor lies; 0 for none."""
    if tensor is None:
        return 0
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def alignment(tensors: Sequence[Tensor]) -> int:
    """Elements that a thread may load at once from any row of these matrices, which are of one dtype."""
    if not tensors:
        return 1
    is_even = all(
        tensor.data_ptr() % VECTOR_BYTES == 0 and tensor.shape[-1] * tensor.element_size() % VECTOR_BYTES == 0
        for tensor in tensors
    )
    return VECTOR_BYTES // tensors[0].element_size() if is_even else 1


def block_of(size: int) -> int:
    """The power of two that covers `size`, at least 16 and at most MAX_BLOCK_N."""
    return min(MAX_BLOCK_N, max(16, 1 << (size - 1).bit_length()))


def num_warps(block_n: int, element_size: int) -> int:
    """The fewest with which the BLOCK_M x block_n accumulator and what surrounds it stay in registers."""
    load = block_n * element_size // 2  # float32 products hold their operands in registers too
    return 4 if load <= 128 else 8 if load <= 1024 else 16
