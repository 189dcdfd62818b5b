"""Low-rank deltas and channel scales of all adapters on projections of one input, in one launch.

The projections lie side by side in y: query, key and value are three parts, a single projection is one. Row i of the
tile's segment s, in part p:

    y[i, p] = channel[p, s] * (y[i, p] + (x[i] @ down[p, s].T) @ up[p, s].T) + bias[p, s]

Rank 0 adds nothing, which is a pure scale; without a channel vector the factor is 1, without a bias nothing is added.
Sums are float32; what enters a product is rounded to the dtype of the weights. Rows that lie in no tile, or whose
segment is empty, are not touched.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.model.kernels.triton_math import dot

# Words of a segment in the table.
SEGMENT_WORDS = 5  # rank, down, up, channel, bias


@triton.jit(do_not_specialize=["num_segments"], do_not_specialize_on_alignment=["tiles", "segments"])
def delta(
    y,
    x,
    tiles,
    segments,
    num_segments,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    PARTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    TILE: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program is BLOCK_N columns of one part of one tile; grid [tiles, columns of a part / BLOCK_N, PARTS].

    y                 [T, PARTS * OUT] contiguous, changed in place
    x                 [T, IN] contiguous, of the same dtype
    tiles, segments   see `triton_tiles`; segments [PARTS, num_segments, SEGMENT]. down [rank, IN], up [OUT, rank],
                      channel and bias [OUT] or address 0
    ALIGNMENT         elements of which the addresses and rows of all matrices are multiples
    """
    dtype = y.dtype.element_ty
    tile = tiles + tl.program_id(0) * TILE
    segment = segments + (tl.program_id(2) * num_segments + tl.load(tile)) * SEGMENT
    first, end = tl.load(tile + 1), tl.load(tile + 2)
    rank = tl.load(segment).to(tl.int32)
    channel_end = tl.where(tl.load(segment + 3) == 0, 0, OUT)
    bias_end = tl.where(tl.load(segment + 4) == 0, 0, OUT)
    if (first >= end) | (rank + channel_end + bias_end == 0):
        return
    down = tl.load(segment + 1).to(tl.pointer_type(dtype))
    up = tl.load(segment + 2).to(tl.pointer_type(dtype))
    channel = tl.load(segment + 3).to(tl.pointer_type(dtype))
    bias = tl.load(segment + 4).to(tl.pointer_type(dtype))
    down = tl.multiple_of(down, ALIGNMENT * (dtype.primitive_bitwidth // 8))
    up = tl.multiple_of(up, ALIGNMENT * (dtype.primitive_bitwidth // 8))
    rank = tl.multiple_of(rank, ALIGNMENT)

    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_col = rows < end, cols < OUT
    inside = is_row[:, None] & is_col[None, :]
    places = rows[:, None] * (PARTS * OUT) + tl.program_id(2) * OUT + cols[None, :]
    total = tl.load(y + places, mask=inside, other=0.0).to(tl.float32)

    for r in range(0, rank, BLOCK_R):
        units = r + tl.arange(0, BLOCK_R)
        is_unit = units < rank
        narrow = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for k in range(0, IN, BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            is_k = ks < IN
            own = tl.load(x + rows[:, None] * IN + ks[None, :], mask=is_row[:, None] & is_k[None, :], other=0.0)
            weight = tl.load(
                down + units[None, :] * IN + ks[:, None], mask=is_unit[None, :] & is_k[:, None], other=0.0
            )  # [BLOCK_K, BLOCK_R]
            narrow = dot(own, weight, narrow)
        weight = tl.load(
            up + cols[None, :] * rank + units[:, None], mask=is_unit[:, None] & is_col[None, :], other=0.0
        )  # [BLOCK_R, BLOCK_N]
        total = dot(narrow.to(dtype), weight, total)

    total *= tl.load(channel + cols, mask=cols < channel_end, other=1.0).to(tl.float32)[None, :]
    total += tl.load(bias + cols, mask=cols < bias_end, other=0.0).to(tl.float32)[None, :]
    tl.store(y + places, total.to(dtype), mask=inside)
