"""Adapters in PyTorch with as few passes over [T, H] as possible: the backend for CPUs.

Wherever nothing stands between a bottleneck and the closing sum, its output is added straight into that sum. With
y = hidden + residual, a Pfeiffer adapter is y + up(act(down(norm(y)))), and the sub-layer ends in norm(y) for adapters
and base alike. What does not have this form goes to `reference`, as does everything that needs gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from server.composition import Leaf
from server.model.kernels import reference
from server.model.kernels.reference import couple, edit, prepare, uncouple
from server.model.routing import DeltaGroup, Run, Segment, SitePlan, Tree
from server.primitives import BottleneckStyle, Residual

__all__ = ["JOINS", "couple", "edit", "prepare", "projection", "projections", "site", "uncouple"]

JOINS = False


def site(hidden: Tensor, residual: Tensor, norm: nn.Module, plan: SitePlan, closes: bool = True) -> Tensor:
    """See `reference.site`; the same result up to rounding."""
    if torch.is_grad_enabled() or not closes:
        return reference.site(hidden, residual, norm, plan, closes)
    runs = [block for block in plan if _is_summed(block)]
    others = [block for block in plan if not _is_summed(block)]
    done = [reference.apply_block(hidden[b.start : b.end], residual[b.start : b.end], norm, b) for b in others]
    before = [run for run in runs if not run.style.is_parallel and not run.style.original_ln_before]
    narrow = {run: _narrow(hidden[run.start : run.end], run) for run in before}  # they read it before the sum
    summed = hidden.add_(residual)
    for run in runs:
        if run.style.is_parallel:
            narrow[run] = _narrow(residual[run.start : run.end], run)
        elif run.style.original_ln_before:
            narrow[run] = _narrow(norm(summed[run.start : run.end]), run)
    for run, parts in narrow.items():
        _add_up(summed, run.segments, parts)
    out: Tensor = norm(summed)
    for block, rows in zip(others, done, strict=True):
        out[block.start : block.end] = rows
    return out


def _is_summed(block: Run | Tree) -> TypeGuard[Run]:
    return isinstance(block, Run) and is_term(block.style)


def is_term(style: BottleneckStyle) -> bool:
    """Whether the bottleneck's output is just one more term of the closing sum."""
    if style.use_gating or style.ln_before or style.ln_after or not style.original_ln_after:
        return False
    return style.is_parallel or not style.original_ln_before or style.residual is Residual.INPUT


def _narrow(x: Tensor, run: Run) -> Sequence[Tensor]:
    """act(down(x)) of each segment, [tokens, R]; one activation for all.

    x   [rows of the run, H]
    """
    lengths = [segment.end - segment.start for segment in run.segments]
    widths = [segment.weights.down.weight.shape[0] for segment in run.segments]
    sizes = [length * width for length, width in zip(lengths, widths, strict=True)]
    flat = x.new_empty(sum(sizes))
    parts = [
        part.view(length, width) for part, length, width in zip(torch.split(flat, sizes), lengths, widths, strict=True)
    ]
    for part, rows, segment in zip(parts, torch.split(x, lengths), run.segments, strict=True):
        down = segment.weights.down
        assert down.bias is not None
        torch.addmm(down.bias, rows, down.transposed, out=part)
    if run.style.activation == "prelu":  # its slope is each adapter's own
        return [segment.weights.activation(part) for part, segment in zip(parts, run.segments, strict=True)]
    active = torch.relu_(flat) if run.style.activation == "relu" else run.segments[0].weights.activation(flat)
    return [
        part.view(length, width)
        for part, length, width in zip(torch.split(active, sizes), lengths, widths, strict=True)
    ]


def _add_up(summed: Tensor, segments: Sequence[Segment], parts: Sequence[Tensor]) -> None:
    """summed[segment] += up(part), in place."""
    for segment, part in zip(segments, parts, strict=True):
        rows, up = summed[segment.start : segment.end], segment.weights.up
        rows.addmm_(part, up.transposed)
        if up.bias is not None:
            rows.add_(up.bias)


def projection(y: Tensor, x: Tensor, groups: Sequence[DeltaGroup]) -> Tensor:
    """See `reference.projection`; the same result up to rounding."""
    if torch.is_grad_enabled():
        return reference.projection(y, x, groups)
    for group in groups:
        rows = y[group.start : group.end]
        own = x[group.start : group.end]
        weights = group.weights[int(group.node.adapter)] if isinstance(group.node, Leaf) else None
        if weights is None or weights.gate is not None or weights.channel is not None or weights.down is None:
            rows.copy_(reference.apply_delta(rows, own, group))
        else:
            assert weights.down is not None and weights.up is not None
            rows.addmm_(linear(own, weights.down), weights.up.t())
            if weights.bias is not None:
                rows.add_(weights.bias)
    return y


def projections(y: Tensor, x: Tensor, parts: Sequence[Sequence[DeltaGroup]]) -> Tensor:
    """See `reference.projections`; the same result up to rounding, in place."""
    if torch.is_grad_enabled():
        return reference.projections(y, x, parts)
    for part, groups in zip(y.chunk(len(parts), dim=-1), parts, strict=True):
        projection(part, x, groups)
    return y
