"""Adapters as Triton kernels: the backend for GPUs.

Every site is one launch and every group of projections of one input is one, whatever the mix of adapters and widths:
weights are read in place from the adapters' own buffers, through tables of addresses. What has no such form goes to
`reference`, as does everything that needs gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor, nn

from server.errors import InvalidInput
from server.model.kernels import reference, triton_bottleneck, triton_delta
from server.model.kernels.reference import couple, edit, uncouple
from server.model.kernels.triton_plans import TritonPrepared, delta_launch, site_launch
from server.model.kernels.triton_tiles import BLOCK_M, MAX_BLOCK_N, TILE_WORDS, Table
from server.model.kernels.triton_words import (
    BLOCK_K,
    NO_BOTTLENECK,
    NO_DELTA,
    Words,
    block_of,
    bottleneck_words,
    delta_words,
    num_warps,
    table,
)
from server.model.launches import LaunchedDeltas, LaunchedSite
from server.model.routing import DeltaGroup, RoutingPlan, Run, SitePlan, Span, Tree

__all__ = [
    "JOINS",
    "couple",
    "edit",
    "prepare",
    "projection",
    "projections",
    "require",
    "site",
    "uncouple",
]

JOINS = True


def require(device: torch.device | None = None) -> None:
    """Raises InvalidInput where kernels cannot run on `device`; None: on any device here."""
    if triton.knobs.runtime.interpret:
        return
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        raise InvalidInput(
            f"backend 'triton' needs a CUDA device, not {device or 'cpu'}; take backend 'eager',"
            " or set TRITON_INTERPRET=1 before the start to run its kernels slowly on the CPU"
        )


def prepare(plan: RoutingPlan, num_rows: int, num_layers: int, dtype: torch.dtype) -> TritonPrepared:
    """The launches of a pass over `num_rows` rows of `dtype`."""
    return TritonPrepared(plan, num_rows, num_layers, dtype)


def site(hidden: Tensor, residual: Tensor, norm: Any, plan: SitePlan, closes: bool = True) -> Tensor:
    """See `reference.site`; the same result up to rounding. Neither argument is changed."""
    module = getattr(norm, "__self__", norm)  # a stitched LayerNorm comes as its own forward
    if torch.is_grad_enabled() or not _is_fusable(hidden, module):
        return reference.site(hidden, residual, norm, plan, closes)
    if not plan and not closes:
        return hidden
    hidden, residual = hidden.contiguous(), residual.contiguous()
    out = torch.empty_like(hidden)
    at, others = _site_table(plan, hidden)
    if at is not None:
        launch_site(out, hidden, residual, module, at, closes)
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


def _site_table(plan: SitePlan, hidden: Tensor) -> tuple[Table | None, SitePlan]:
    """The table of the fused launch, and the blocks that it leaves out."""
    prepared = site_launch(plan, len(hidden), hidden.dtype) if isinstance(plan, LaunchedSite) else None
    if prepared is not None and isinstance(plan, LaunchedSite):
        return prepared, plan.others
    spans, segments, others = _site_segments(plan, len(hidden), hidden.dtype)
    return table(spans, [segments], hidden.dtype, hidden.device) if segments else None, others


def _site_segments(
    plan: SitePlan, num_rows: int, dtype: torch.dtype
) -> tuple[list[Span], list[Words], list[Run | Tree]]:
    """Rows and words of the fused launch, and the blocks that it leaves out; rows in neither are the base alone."""
    spans: list[Span] = []
    segments: list[Words] = []
    others: list[Run | Tree] = []
    position = 0

    def add(start: int, end: int, words: Words) -> None:
        if start < end:
            spans.append((start, end))
            segments.append(words)

    for block in plan:
        add(position, block.start, NO_BOTTLENECK)
        position = block.end
        own = (
            [bottleneck_words(segment.weights, dtype) for segment in block.segments]
            if isinstance(block, Run)
            else [None]
        )
        if isinstance(block, Tree) or None in own:
            others.append(block)
            continue
        for segment, words in zip(block.segments, own, strict=True):
            assert words is not None
            add(segment.start, segment.end, words)
    add(position, num_rows, NO_BOTTLENECK)
    return spans, segments, others


def launch_site(out: Tensor, hidden: Tensor, residual: Tensor, norm: nn.Module, at: Table, closes: bool) -> None:
    """One launch of `triton_bottleneck`."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    block_h = block_of(hidden.shape[-1])
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]
        triton_bottleneck.bottleneck[(len(at.tiles),)](
            out,
            hidden,
            residual,
            hidden if weight is None else weight,
            hidden if bias is None else bias,
            getattr(norm, "eps", 0.0),
            at.tiles,
            at.segments,
            H=hidden.shape[-1],
            HAS_NORM=weight is not None,
            HAS_NORM_BIAS=bias is not None,
            CLOSES=closes,
            ALIGNMENT=at.alignment,
            TILE=TILE_WORDS,
            SEGMENT=triton_bottleneck.SEGMENT_WORDS,
            BLOCK_M=BLOCK_M,
            BLOCK_H=block_h,
            BLOCK_K=min(block_h, BLOCK_K[hidden.element_size()]),
            BLOCK_R=at.block_r,
            num_warps=num_warps(block_h, hidden.element_size()),
            enable_fp_fusion=True,
        )


def projection(y: Tensor, x: Tensor, groups: Sequence[DeltaGroup]) -> Tensor:
    """See `reference.projection`; the same result up to rounding, written into y where y is contiguous."""
    return projections(y, x, [groups])


def projections(y: Tensor, x: Tensor, parts: Sequence[Sequence[DeltaGroup]]) -> Tensor:
    """See `reference.projections`; the same result up to rounding, written into y where y is contiguous."""
    if torch.is_grad_enabled():
        return reference.projections(y, x, parts)
    y, x = y.contiguous(), x.contiguous()
    at = delta_launch(parts, len(y), y.dtype)
    if at is not None:
        others = [part.others if isinstance(part, LaunchedDeltas) else () for part in parts]
    else:
        spans, segments = _delta_segments(parts, y.dtype)
        at = table(spans, segments, y.dtype, y.device) if spans else None
        others = [[group for group in groups if _simple(group, y.dtype) is None] for groups in parts]
    if at is not None:
        launch_delta(y, x, at)
    for part, groups in zip(y.chunk(len(parts), dim=-1), others, strict=True):
        apply_deltas(part, x, groups)
    return y


def _simple(group: DeltaGroup, dtype: torch.dtype) -> Words | None:
    """The words of a group of one adapter that the kernel can compute."""
    return None if group.only is None else delta_words(group.only, dtype)


def _delta_segments(parts: Sequence[Sequence[DeltaGroup]], dtype: torch.dtype) -> tuple[list[Span], list[list[Words]]]:
    """Rows of the segments, and their words in each part. Rows of one group are the same in all parts that have it."""
    own = [{(g.start, g.end): words for g in groups if (words := _simple(g, dtype)) is not None} for groups in parts]
    spans = sorted({span for part in own for span in part})
    return spans, [[part.get(span, NO_DELTA) for span in spans] for part in own]


def apply_deltas(y: Tensor, x: Tensor, groups: Sequence[DeltaGroup]) -> None:
    """Deltas that no kernel computes, in place; y [T, out] may be columns of something wider."""
    for group in groups:
        rows = slice(group.start, group.end)
        y[rows] = reference.apply_delta(y[rows], x[rows], group)


def launch_delta(y: Tensor, x: Tensor, at: Table) -> None:
    """One launch of `triton_delta`."""
    num_parts, num_segments, _ = at.segments.shape
    size = y.shape[-1] // num_parts
    block_n = min(1024, block_of(size))
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        triton_delta.delta[(len(at.tiles), triton.cdiv(size, block_n), num_parts)](
            y,
            x,
            at.tiles,
            at.segments,
            num_segments,
            IN=x.shape[-1],
            OUT=size,
            PARTS=num_parts,
            ALIGNMENT=at.alignment,
            TILE=TILE_WORDS,
            SEGMENT=triton_delta.SEGMENT_WORDS,
            BLOCK_M=BLOCK_M,
            BLOCK_N=block_n,
            BLOCK_K=min(block_of(x.shape[-1]), BLOCK_K[y.element_size()]),
            BLOCK_R=at.block_r,
            num_warps=num_warps(block_n, y.element_size()),
            enable_fp_fusion=True,
        )
