"""Adapters as Triton kernels: the backend for GPUs.

Every site is one launch and every projection with simple deltas is one, whatever the mix of adapters and widths:
weights are read in place from the adapters' own buffers, through tables of addresses. What has no such form goes to
`reference`, as does everything that needs gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor, nn

from server.composition import Leaf
from server.errors import InvalidInput
from server.model.kernels import reference, triton_bottleneck, triton_delta, triton_math
from server.model.kernels.eager import is_term
from server.model.kernels.reference import couple, edit, uncouple
from server.model.kernels.triton_tiles import (
    BLOCK_M,
    MAX_BLOCK_N,
    Table,
    address,
    alignment,
    block_of,
    num_warps,
    table,
)
from server.model.routing import DeltaGroup, Run, SitePlan, Tree
from server.model.weights import BottleneckWeights, DeltaWeights
from server.primitives import BottleneckStyle

__all__ = ["couple", "edit", "projection", "require", "site", "uncouple"]

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


def require(device: torch.device | None = None) -> None:
    """Raises InvalidInput where kernels cannot run on `device`; None: on any device here."""
    if triton.knobs.runtime.interpret:
        return
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        raise InvalidInput(
            f"backend 'triton' needs a CUDA device, not {device or 'cpu'}; take backend 'eager',"
            " or set TRITON_INTERPRET=1 before the start to run its kernels slowly on the CPU"
        )


def site(hidden: Tensor, residual: Tensor, norm: Any, plan: SitePlan, closes: bool = True) -> Tensor:
    """See `reference.site`; the same result up to rounding. Neither argument is changed."""
    module = getattr(norm, "__self__", norm)  # a stitched LayerNorm comes as its own forward
    if torch.is_grad_enabled() or not _is_fusable(hidden, module):
        return reference.site(hidden, residual, norm, plan, closes)
    if not plan and not closes:
        return hidden
    hidden, residual = hidden.contiguous(), residual.contiguous()
    out = torch.empty_like(hidden)
    fused = [block for block in plan if _is_summed(block, hidden)]
    others = [block for block in plan if not _is_summed(block, hidden)]
    _launch_bottleneck(out, hidden, residual, module, _Site(fused, others, len(hidden)), closes)
    for block in others:
        rows = slice(block.start, block.end)
        out[rows] = reference.apply_block(hidden[rows], residual[rows], norm, block)
    return out


def _is_fusable(hidden: Tensor, norm: nn.Module) -> bool:
    """Whether the kernel can compute this norm and hold a row."""
    if hidden.shape[-1] > MAX_BLOCK_N or not len(hidden):
        return False
    if isinstance(norm, nn.Identity):
        return True
    return type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1 and norm.weight is not None


def _is_summed(block: Run | Tree, hidden: Tensor) -> bool:
    return (
        isinstance(block, Run)
        and is_term(block.style)
        and block.style.activation in ACTIVATIONS
        and all(segment.weights.down.weight.dtype is hidden.dtype for segment in block.segments)
    )


class _Site:
    """Segments of the fused launch: those of the runs, and the base alone between all blocks.

    spans      first and past-the-end row of each
    words      of each, as `triton_bottleneck` wants them
    weights    the matrices of all of them
    """

    def __init__(self, runs: Sequence[Run | Tree], others: Sequence[Run | Tree], num_rows: int) -> None:
        self.spans: list[tuple[int, int]] = []
        self.words: list[list[int]] = []
        self.weights: list[Tensor] = []
        position = 0
        for block in sorted([*runs, *others], key=lambda block: block.start):
            self._add_base(position, block.start)
            position = block.end
            if block in runs and isinstance(block, Run):
                for segment in block.segments:
                    self._add(segment.start, segment.end, segment.weights)
        self._add_base(position, num_rows)

    def _add_base(self, start: int, end: int) -> None:
        if start < end:
            self.spans.append((start, end))
            self.words.append([end, triton_bottleneck.BASE.value, 0, 0, 0, 0, 0, 0])

    def _add(self, start: int, end: int, weights: BottleneckWeights) -> None:
        down, up = weights.down, weights.up
        self.spans.append((start, end))
        self.words.append(
            [
                end,
                _reads(weights.style),
                ACTIVATIONS[weights.style.activation],
                len(down.weight),
                address(down.weight),
                address(down.bias),
                address(up.weight),
                address(up.bias),
            ]
        )
        self.weights += (down.weight, up.weight)


def _reads(style: BottleneckStyle) -> int:
    if style.is_parallel:
        return int(triton_bottleneck.RESIDUAL.value)
    if style.original_ln_before:
        return int(triton_bottleneck.NORMED.value)
    return int(triton_bottleneck.HIDDEN.value)


def _launch_bottleneck(
    out: Tensor, hidden: Tensor, residual: Tensor, norm: nn.Module, work: _Site, closes: bool
) -> None:
    if not work.spans:
        return
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    at = table(work.spans, work.words, hidden.device)
    block_h = block_of(hidden.shape[-1])
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]
        triton_bottleneck.bottleneck[(at.num_tiles,)](
            out,
            hidden,
            residual,
            hidden if weight is None else weight,
            hidden if bias is None else bias,
            getattr(norm, "eps", 0.0),
            at.words,
            at.num_tiles,
            H=hidden.shape[-1],
            HAS_NORM=weight is not None,
            HAS_NORM_BIAS=bias is not None,
            CLOSES=closes,
            ALIGNMENT=alignment(work.weights),
            SEGMENT=triton_bottleneck.SEGMENT_WORDS,
            BLOCK_M=BLOCK_M,
            BLOCK_H=block_h,
            BLOCK_K=min(block_h, BLOCK_K[hidden.element_size()]),
            BLOCK_R=_block_r(work.weights[::2], hidden),
            num_warps=num_warps(block_h, hidden.element_size()),
            enable_fp_fusion=True,
        )


def _block_r(downs: Sequence[Tensor], like: Tensor) -> int:
    """Units worked on at once: covers the widest of `downs` [R, _] up to a limit, beyond which kernels loop."""
    return min(MAX_BLOCK_R[like.element_size()], block_of(max((len(down) for down in downs), default=1)))


def projection(y: Tensor, x: Tensor, groups: Sequence[DeltaGroup]) -> Tensor:
    """See `reference.projection`; the same result up to rounding, written into y where y is contiguous."""
    if torch.is_grad_enabled():
        return reference.projection(y, x, groups)
    y, x = y.contiguous(), x.contiguous()
    simple = [(group, weights) for group in groups if (weights := _simple(group, y)) is not None]
    _launch_delta(y, x, simple)
    for group in groups:
        if _simple(group, y) is None:
            rows = slice(group.start, group.end)
            y[rows] = reference.apply_delta(y[rows], x[rows], group)
    return y


def _simple(group: DeltaGroup, y: Tensor) -> DeltaWeights | None:
    """The weights of a group of one adapter without gate."""
    if not isinstance(group.node, Leaf):
        return None
    weights = group.weights[int(group.node.adapter)]
    own = weights.channel if weights.down is None else weights.down
    assert own is not None
    return weights if weights.gate is None and own.dtype is y.dtype else None


def _launch_delta(y: Tensor, x: Tensor, groups: Sequence[tuple[DeltaGroup, DeltaWeights]]) -> None:
    if not groups:
        return
    words, matrices = [], []
    for group, weights in groups:
        down, up = (None, None) if weights.is_scale else (weights.down, weights.up)
        rank = 0 if down is None else len(down)
        words.append([group.end, rank, address(down), address(up), address(weights.channel)])
        matrices += [matrix for matrix in (down, up) if matrix is not None]
    at: Table = table([(group.start, group.end) for group, _ in groups], words, y.device)
    block_n = min(1024, block_of(y.shape[-1]))
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        triton_delta.delta[(at.num_tiles, triton.cdiv(y.shape[-1], block_n))](
            y,
            x,
            at.words,
            at.num_tiles,
            IN=x.shape[-1],
            OUT=y.shape[-1],
            ALIGNMENT=alignment(matrices),
            SEGMENT=triton_delta.SEGMENT_WORDS,
            BLOCK_M=BLOCK_M,
            BLOCK_N=block_n,
            BLOCK_K=min(block_of(x.shape[-1]), BLOCK_K[y.element_size()]),
            BLOCK_R=_block_r(matrices[::2], y),
            num_warps=num_warps(block_n, y.element_size()),
            enable_fp_fusion=True,
        )
