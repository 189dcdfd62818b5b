"""What the Triton kernels know of an adapter at one place: the words of its segment, or that it is none of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.model.kernels import triton_bottleneck, triton_delta, triton_math
from server.model.kernels.eager import is_term
from server.model.kernels.triton_tiles import MAX_BLOCK_N, VECTOR_BYTES, Table, tiles_of
from server.model.routing import Span
from server.model.weights import BottleneckWeights, DeltaWeights
from server.primitives import BottleneckStyle

ACTIVATIONS = {
    "linear": 0,
    "relu": triton_math.RELU.value,
    "gelu": triton_math.GELU.value,
    "gelu_python": triton_math.GELU.value,
    "gelu_new": triton_math.GELU_TANH.value,
    "gelu_fast": triton_math.GELU_TANH.value,
    "gelu_accurate": triton_math.GELU_TANH.value,
    "gelu_pytorch_tanh": triton_math.GELU_TANH.value,
    "gelu_python_tanh": triton_math.GELU_TANH.value,
    "silu": triton_math.SILU.value,
    "swish": triton_math.SILU.value,
    "tanh": triton_math.TANH.value,
    "sigmoid": triton_math.SIGMOID.value,
    "leaky_relu": triton_math.LEAKY_RELU.value,
    "leakyrelu": triton_math.LEAKY_RELU.value,
}
BLOCK_K = {2: 64, 4: 32}  # by bytes of an element: float32 products without tensor cores unroll over it
MAX_BLOCK_R = {2: 32, 4: 16}


@dataclass(frozen=True, slots=True)
class Words:
    """One segment.

    words      as the kernel wants them
    width      units of the bottleneck, or rank
    is_even    whether every row of its matrices starts where the widest loads may
    """

    words: tuple[int, ...]
    width: int = 0
    is_even: bool = True


NO_BOTTLENECK = Words((triton_bottleneck.BASE.value,) + (0,) * (triton_bottleneck.SEGMENT_WORDS - 1))
NO_DELTA = Words((0,) * triton_delta.SEGMENT_WORDS)


def bottleneck_words(weights: BottleneckWeights, dtype: torch.dtype) -> Words | None:
    """None where the kernel cannot compute this bottleneck on rows of `dtype`."""
    down, up, style = weights.down, weights.up, weights.style
    if not is_term(style) or style.activation not in ACTIVATIONS or down.weight.dtype is not dtype:
        return None
    words = (
        *(_reads(style), ACTIVATIONS[style.activation], len(down.weight)),
        *(_address(tensor) for tensor in (down.weight, down.bias, up.weight, up.bias)),
    )
    return Words(words, len(down.weight), _is_even(down.weight, up.weight))


def _reads(style: BottleneckStyle) -> int:
    if style.is_parallel:
        return int(triton_bottleneck.RESIDUAL.value)
    if style.original_ln_before:
        return int(triton_bottleneck.NORMED.value)
    return int(triton_bottleneck.HIDDEN.value)


def delta_words(weights: DeltaWeights, dtype: torch.dtype) -> Words | None:
    """None where the kernel cannot compute this delta on rows of `dtype`. A scale of the input is not its affair."""
    tensors = (weights.down, weights.up, weights.channel, weights.bias)
    if weights.gate is not None or any(tensor is not None and tensor.dtype is not dtype for tensor in tensors):
        return None
    down, up = (None, None) if weights.is_scale else (weights.down, weights.up)
    rank = 0 if down is None else len(down)
    matrices = [matrix for matrix in (down, up) if matrix is not None]
    words = (rank, *(_address(tensor) for tensor in (down, up, weights.channel, weights.bias)))
    return Words(words, rank, _is_even(*matrices))


def table(spans: Sequence[Span], parts: Sequence[Sequence[Words]], dtype: torch.dtype, device: torch.device) -> Table:
    """The table of one launch by itself, in one copy.

    spans   rows of each segment
    parts   each part's own segments
    """
    tiles = tiles_of(spans)
    segments = np.array([[segment.words for segment in part] for part in parts], dtype=np.int64)
    host = torch.from_numpy(np.concatenate([tiles.ravel(), segments.ravel()]))
    words = (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
    flat = [segment for part in parts for segment in part]
    return Table(
        words[: tiles.size].view(tiles.shape),
        words[tiles.size :].view(segments.shape),
        alignment(all(segment.is_even for segment in flat), dtype),
        block_r(max(segment.width for segment in flat), dtype),
    )


def alignment(is_even: bool, dtype: torch.dtype) -> int:
    """Elements that a thread may load at once from any row of matrices that are all even, or not."""
    return VECTOR_BYTES // dtype.itemsize if is_even else 1


def block_r(width: int, dtype: torch.dtype) -> int:
    """Units worked on at once: covers the widest segment up to a limit, beyond which kernels loop."""
    return min(MAX_BLOCK_R[dtype.itemsize], block_of(max(1, width)))


def block_of(size: int) -> int:
    """The power of two that covers `size`, at least 16 and at most MAX_BLOCK_N."""
    return min(MAX_BLOCK_N, max(16, 1 << (size - 1).bit_length()))


def num_warps(block_n: int, element_size: int) -> int:
    """The fewest with which the BLOCK_M x block_n accumulator and what surrounds it stay in registers."""
    load = block_n * element_size // 2  # float32 products hold their operands in registers too
    return 4 if load <= 128 else 8 if load <= 1024 else 16


def _address(tensor: Tensor | None) -> int:
    """Where a contiguous tensor lies; 0 for none."""
    if tensor is None:
        return 0
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _is_even(*matrices: Tensor) -> bool:
    return all(
        matrix.data_ptr() % VECTOR_BYTES == 0 and matrix.shape[-1] * matrix.element_size() % VECTOR_BYTES == 0
        for matrix in matrices
    )
