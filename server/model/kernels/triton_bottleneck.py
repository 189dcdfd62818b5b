"""The fused end of a sub-layer: residual, bottleneck and LayerNorm of every token in one launch.

Row i of the tile's segment s, with y = hidden[i] + residual[i]:

    x       = norm(y), hidden[i] or residual[i]                  as reads[s] says
    narrow  = activation[s](x @ down[s].T + down_bias[s])        [width[s]]
    out[i]  = norm(y + narrow @ up[s].T + up_bias[s])

A segment of width 0 is the base alone: out[i] = norm(y). Sums are float32; what enters a product is rounded to the
dtype of the weights. Rows that lie in no segment are not written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.model.kernels.triton_math import activated, dot

# Words of a segment in the table.
SEGMENT_WORDS = 7  # reads, activation, width, down, down bias, up, up bias

# What a segment reads.
BASE = tl.constexpr(0)  # nothing: there is no adapter
NORMED = tl.constexpr(1)  # norm(hidden + residual)
HIDDEN = tl.constexpr(2)
RESIDUAL = tl.constexpr(3)


@triton.jit(do_not_specialize_on_alignment=["tiles", "segments"])
def bottleneck(
    out,
    hidden,
    residual,
    norm_weight,
    norm_bias,
    eps,
    tiles,
    segments,
    H: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    CLOSES: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    TILE: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program is one tile, all of its columns; grid [num_tiles].

    out, hidden, residual    [T, H] contiguous, of one dtype; out is another tensor than the others
    norm_weight, norm_bias   [H]; not read where HAS_NORM or HAS_NORM_BIAS says there is none: then norm is the identity
    tiles, segments          see `triton_tiles`. down [width, H], up [H, width], biases [width] and [H] or address 0
    ALIGNMENT                elements of which the addresses and rows of all matrices are multiples
    CLOSES                   otherwise a row without adapter stays hidden[i]
    BLOCK_H                  covers H; BLOCK_K and BLOCK_R are the steps over x and over the width
    """
    dtype = hidden.dtype.element_ty
    tile = tiles + tl.program_id(0) * TILE
    segment = segments + tl.load(tile) * SEGMENT
    first, end = tl.load(tile + 1), tl.load(tile + 2)
    if first >= end:
        return
    reads, activation, width = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2).to(tl.int32)
    # A bound of 0 is a mask that lets nothing through.
    hidden_end, residual_end = tl.where(reads == RESIDUAL, 0, end), tl.where(reads == HIDDEN, 0, end)
    down_bias_end = tl.where(tl.load(segment + 4) == 0, 0, width)
    up_bias_end = tl.where(tl.load(segment + 6) == 0, 0, H)
    down = tl.load(segment + 3).to(tl.pointer_type(dtype))
    down_bias = tl.load(segment + 4).to(tl.pointer_type(dtype))
    up = tl.load(segment + 5).to(tl.pointer_type(dtype))
    up_bias = tl.load(segment + 6).to(tl.pointer_type(dtype))
    down = tl.multiple_of(down, ALIGNMENT * (dtype.primitive_bitwidth // 8))
    up = tl.multiple_of(up, ALIGNMENT * (dtype.primitive_bitwidth // 8))
    width = tl.multiple_of(width, ALIGNMENT)

    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_H)
    is_row, is_col = rows < end, cols < H
    inside = is_row[:, None] & is_col[None, :]
    places = rows[:, None] * H + cols[None, :]
    y = tl.load(hidden + places, mask=inside, other=0.0).to(tl.float32)
    y += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        mean = tl.sum(y, axis=1) / H
        apart = tl.where(is_col[None, :], y - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=1) / H + eps)

    for r in range(0, width, BLOCK_R):
        units = r + tl.arange(0, BLOCK_R)
        is_unit = units < width
        narrow = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for k in range(0, H, BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            is_k = ks < H
            read = rows[:, None] * H + ks[None, :]
            in_hidden = (rows < hidden_end)[:, None] & is_k[None, :]
            in_residual = (rows < residual_end)[:, None] & is_k[None, :]
            x = tl.load(hidden + read, mask=in_hidden, other=0.0).to(tl.float32)
            x += tl.load(residual + read, mask=in_residual, other=0.0).to(tl.float32)
            if HAS_NORM:
                gain = tl.load(norm_weight + ks, mask=is_k, other=0.0).to(tl.float32)
                normed = (x - mean[:, None]) * scale[:, None] * gain[None, :]
                if HAS_NORM_BIAS:
                    normed += tl.load(norm_bias + ks, mask=is_k, other=0.0).to(tl.float32)[None, :]
                x = tl.where(reads == NORMED, normed, x)
            weight = tl.load(
                down + units[None, :] * H + ks[:, None], mask=is_unit[None, :] & is_k[:, None], other=0.0
            )  # [BLOCK_K, BLOCK_R]
            narrow = dot(x.to(dtype), weight, narrow)
        narrow += tl.load(down_bias + units, mask=units < down_bias_end, other=0.0).to(tl.float32)[None, :]
        narrow = activated(narrow, activation)
        weight = tl.load(
            up + cols[None, :] * width + units[:, None], mask=is_unit[:, None] & is_col[None, :], other=0.0
        )  # [BLOCK_R, BLOCK_H]
        y = dot(narrow.to(dtype), weight, y)

    y += tl.load(up_bias + cols, mask=cols < up_bias_end, other=0.0).to(tl.float32)[None, :]
    if HAS_NORM:
        mean = tl.sum(y, axis=1) / H
        apart = tl.where(is_col[None, :], y - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=1) / H + eps)
        y = apart * scale[:, None] * tl.load(norm_weight + cols, mask=is_col, other=0.0).to(tl.float32)[None, :]
        if HAS_NORM_BIAS:
            y += tl.load(norm_bias + cols, mask=is_col, other=0.0).to(tl.float32)[None, :]
    if not CLOSES:
        y = tl.where(reads == BASE, tl.load(hidden + places, mask=inside, other=0.0).to(tl.float32), y)
    tl.store(out + places, y.to(dtype), mask=inside)
