"""Bottleneck adapters in plain PyTorch, segment by segment: the definition of the semantics.

Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (2005.00052), He et al. 2021 (2110.04366) for the
parallel form; the order of residual and LayerNorm is that of AdapterHub's checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from server.model.routing import Run, Segment, SitePlan
from server.model.slots import AffineWeights
from server.primitives import BottleneckStyle, Residual

ADAPTER_NORM_EPS = 1e-5  # of the adapter's own LayerNorms, whatever the base uses


def site(hidden: Tensor, residual: Tensor, norm: nn.Module, plan: SitePlan) -> Tensor:
    """The end of a sub-layer with every token's own adapter in it.

    Without adapters this is norm(hidden + residual). At each step, the tokens of each run go through their bottleneck;
    the last one that a token met decides whether the closing LayerNorm is applied.

    hidden     [T, H] the projection's output; a backend may overwrite it
    residual   [T, H] the sub-layer's input, not modified
    norm       the sub-layer's own LayerNorm
    returns    [T, H]
    """
    unnormed: list[tuple[int, int]] = []
    for step in plan:
        for run in step:
            hidden = _apply(hidden, residual, norm, run)
            unnormed = [span for span in unnormed if not run.start <= span[0] < run.end]
            if not run.style.original_ln_after:
                unnormed.extend((segment.start, segment.end) for segment in run.segments)
    if not unnormed:
        return norm(hidden + residual)  # type: ignore[no-any-return]
    return _normed_except(hidden, residual, norm, sorted(unnormed))


def _normed_except(hidden: Tensor, residual: Tensor, norm: nn.Module, spans: list[tuple[int, int]]) -> Tensor:
    parts, position = [], 0
    for start, end in [*spans, (len(hidden), len(hidden))]:
        if position < start:
            parts.append(norm(hidden[position:start] + residual[position:start]))
        parts.append(hidden[start:end])
        position = end
    return torch.cat(parts)


def _apply(hidden: Tensor, residual: Tensor, norm: nn.Module, run: Run) -> Tensor:
    """`hidden` with the tokens of one run sent through their bottlenecks."""
    style, rows = run.style, slice(run.start, run.end)
    x, added = _before(hidden[rows], residual[rows], norm, style)
    parts = []
    for segment in run.segments:
        own = slice(segment.start - run.start, segment.end - run.start)
        parts.append(_bottleneck(x[own], added[own], segment, hidden[segment.start : segment.end]))
    return torch.cat([hidden[: run.start], *parts, hidden[run.end :]])


def _before(h: Tensor, t: Tensor, norm: nn.Module, style: BottleneckStyle) -> tuple[Tensor, Tensor]:
    """What the bottleneck reads and what is added to its output, both [rows, H]."""
    if style.is_parallel:
        return t, h
    if not style.original_ln_before:
        return h, h
    summed = h + t
    x = norm(summed)
    return x, {Residual.INPUT: h, Residual.POST_ADD: summed, Residual.NORMED: x}[style.residual]


def _up(x: Tensor, segment: Segment) -> Tensor:
    weights = segment.weights
    if weights.norm_before is not None:
        x = _norm(x, weights.norm_before)
    return weights.activation(linear(x, weights.down.weight, weights.down.bias))


def _bottleneck(x: Tensor, added: Tensor, segment: Segment, h: Tensor) -> Tensor:
    """The general form for one segment, out of place.

    x       [rows, H] input of the bottleneck
    added   [rows, H] its residual
    h       [rows, H] the projection's output, which the parallel form adds last
    """
    weights, style = segment.weights, segment.weights.style
    out = linear(_up(x, segment), weights.up.weight, weights.up.bias)
    if weights.gate is not None:
        out = out * _gate(x, segment, weights.gate)
    if style.is_parallel:
        return (_norm(out, weights.norm_after) if weights.norm_after else out) + h
    if style.adapter_residual_before_ln:
        out = out + added
    if weights.norm_after is not None:
        out = _norm(out, weights.norm_after)
    return out if style.adapter_residual_before_ln else out + added


def _gate(x: Tensor, segment: Segment, gate: AffineWeights) -> Tensor:
    """[rows, 1]: each sample's own gate, the mean of sigmoid(gate(x)) over its tokens."""
    opened = torch.sigmoid(linear(x, gate.weight, gate.bias))
    lengths = [end - start for start, end in segment.samples]
    means = torch.stack([part.mean() for part in torch.split(opened, lengths)])
    return means.repeat_interleave(torch.tensor(lengths, device=x.device), output_size=len(x)).unsqueeze(1)


def _norm(x: Tensor, weights: AffineWeights) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights.weight, weights.bias, ADAPTER_NORM_EPS)
