"""Adapters in plain PyTorch, group by group: the definition of the semantics.

Bottlenecks: Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (2005.00052), He et al. 2021 (2110.04366) for
the parallel form; the order of residual and LayerNorm is that of AdapterHub's checkpoints. Compositions are those of
AdapterHub's library. Everything here can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from server.composition import Average, Fuse, Leaf, Node, Split, Stack, first_leaf, last_leaf
from server.model.routing import DeltaGroup, RoutingPlan, Run, SitePlan, Span, Tree
from server.model.upload import indices
from server.model.weights import (
    AffineWeights,
    BottleneckWeights,
    CouplingWeights,
    DeltaWeights,
    EditsWeights,
    EditWeights,
    FusionWeights,
)
from server.primitives import Residual

JOINS = True
ADAPTER_NORM_EPS = 1e-5  # of the adapter's own LayerNorms, whatever the base uses


def prepare(plan: RoutingPlan, num_rows: int, num_layers: int, dtype: torch.dtype) -> None:
    """What a backend makes once per pass; nothing here."""


def site(hidden: Tensor, residual: Tensor, norm: nn.Module, plan: SitePlan, closes: bool = True) -> Tensor:
    """The end of a sub-layer with every token's own adapters in it.

    Without adapters this is norm(hidden + residual), or hidden where the sub-layer does not close with a LayerNorm.

    hidden     [T, H] the projection's output; a backend may overwrite it
    residual   [T, H] the sub-layer's input, not modified
    norm       the sub-layer's own LayerNorm
    returns    [T, H]
    """
    parts, position = [], 0
    for block in plan:
        if position < block.start:
            parts.append(_plain(hidden[position : block.start], residual[position : block.start], norm, closes))
        rows = slice(block.start, block.end)
        parts.append(apply_block(hidden[rows], residual[rows], norm, block))
        position = block.end
    if position < len(hidden):
        parts.append(_plain(hidden[position:], residual[position:], norm, closes))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def apply_block(hidden: Tensor, residual: Tensor, norm: nn.Module, block: Run | Tree) -> Tensor:
    """The rows of one run or tree at the end of a sub-layer; `hidden` and `residual` hold just these rows."""
    if isinstance(block, Tree):
        state = _State(hidden, residual, hidden, norm, _lengths(block.samples), block)
        state = _compose(block.node, state)
        assert state.last is not None
        return _after(state.last, state.hidden, hidden, residual, norm)
    x, added = _before(block.segments[0].weights, hidden, residual, norm)
    parts = []
    for segment in block.segments:
        rows = slice(segment.start - block.start, segment.end - block.start)
        out = bottleneck(segment.weights, x[rows], added[rows], _lengths(segment.samples))[0]
        parts.append(_after(segment.weights, out, hidden[rows], residual[rows], norm))
    return torch.cat(parts)


def _plain(hidden: Tensor, residual: Tensor, norm: nn.Module, closes: bool) -> Tensor:
    return norm(hidden + residual) if closes else hidden


def _before(weights: BottleneckWeights, h: Tensor, t: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What the bottleneck reads and what is added to its output, both [rows, H]."""
    style = weights.style
    if style.is_parallel:
        return t, t
    if not style.original_ln_before:
        return h, h
    summed = h + t
    x = norm(summed)
    return x, {Residual.INPUT: h, Residual.POST_ADD: summed, Residual.NORMED: x}[style.residual]


def bottleneck(weights: BottleneckWeights, x: Tensor, added: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One adapter on its rows.

    x         [rows, H] what the bottleneck reads
    added     [rows, H] its residual; the parallel form has none in here
    lengths   tokens of each sample, for the gate
    returns   its output and, before gate, LayerNorm and residual, its scaled up-projection; both [rows, H]
    """
    style, z = weights.style, x
    if weights.norm_before is not None:
        z = _norm(z, weights.norm_before)
    narrow = weights.activation(linear(z, weights.down.weight, weights.down.bias))
    up = out = linear(narrow, weights.up.weight, weights.up.bias)
    if weights.gate is not None:
        out = out * gate(x, weights.gate, lengths)
    has_residual = not style.is_parallel
    if has_residual and style.adapter_residual_before_ln:
        out = out + added
    if weights.norm_after is not None:
        out = _norm(out, weights.norm_after)
    if has_residual and not style.adapter_residual_before_ln:
        out = out + added
    return out, up


def _after(weights: BottleneckWeights, out: Tensor, h: Tensor, t: Tensor, norm: nn.Module) -> Tensor:
    """How the sub-layer ends behind the last adapter; h is the projection's output."""
    if weights.style.is_parallel:
        out = out + h
    return norm(out + t) if weights.style.original_ln_after else out


def gate(x: Tensor, weights: AffineWeights, lengths: Sequence[int]) -> Tensor:
    """[rows, G]: each sample's own gates at all of its tokens."""
    own = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    return gates(x, weights, lengths).index_select(0, indices(own, x.device))


def gates(x: Tensor, weights: AffineWeights, lengths: Sequence[int]) -> Tensor:
    """[N, G]: each sample's gates, the means of sigmoid(gate x) over its tokens; x [rows, H]."""
    opened = torch.sigmoid(linear(x, weights.weight, weights.bias))
    return torch.stack([part.mean(dim=0) for part in torch.split(opened, list(lengths))])


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """Rows on their way through a tree.

    hidden     [rows, H] what the last adapter gave
    residual   [rows, H] the sub-layer's input
    added      [rows, H] what the next adapter adds to its output
    up         [rows, H] the last adapter's scaled up-projection, which is what a fusion sees
    """

    hidden: Tensor
    residual: Tensor
    added: Tensor
    norm: nn.Module
    lengths: list[int]
    tree: Tree
    up: Tensor | None = None
    last: BottleneckWeights | None = None

    def weights(self, leaf: Leaf) -> BottleneckWeights:
        return self.tree.weights[int(leaf.adapter)]


def _compose(node: Node, state: _State) -> _State:
    if isinstance(node, Leaf):
        return _leaf(node, _prepared(node, state))
    if isinstance(node, Stack):
        for child in node.children:
            state = _compose(child, state)
        return state
    if isinstance(node, Fuse):
        return _fuse(node, state)
    if isinstance(node, Average):
        return _average(node, state)
    assert isinstance(node, Split)
    return _split(node, state)


def _prepared(leaf: Leaf, state: _State) -> _State:
    """The steps before an adapter, in its own way."""
    x, added = _before(state.weights(leaf), state.hidden, state.residual, state.norm)
    return replace(state, hidden=x, added=added)


def _leaf(leaf: Leaf, state: _State) -> _State:
    weights = state.weights(leaf)
    out, up = bottleneck(weights, state.hidden, state.added, state.lengths)
    return replace(state, hidden=out, up=up, last=weights)


def _child(node: Node, state: _State) -> _State:
    """A member of a block: the block has prepared the rows once for all; a stack does so again by itself."""
    return _leaf(node, state) if isinstance(node, Leaf) else _compose(node, state)


def _fuse(node: Fuse, state: _State) -> _State:
    fusion = state.tree.fusions[int(node.fusion)]
    last = last_leaf(node)
    prepared = _prepared(last, state)
    is_parallel = state.weights(last).style.is_parallel
    query = state.hidden if fusion.fusion.query_before_ln and not is_parallel else prepared.hidden
    ups = [_child(child, prepared).up for child in node.children]
    mixed = fuse(fusion, query, prepared.added, torch.stack([up for up in ups if up is not None]))
    return replace(prepared, hidden=mixed, last=state.weights(last))


def fuse(weights: FusionWeights, query: Tensor, added: Tensor, values: Tensor) -> Tensor:
    """Attention of every token over what the members of a fusion give for it.

    query    [rows, H]
    added    [rows, H] the residual
    values   [members, rows, H] the members' scaled up-projections
    """
    fusion = weights.fusion
    if fusion.residual_before:
        values = values + added
    keys = _through(weights.key, values)
    scores = (_through(weights.query, query) * keys).sum(-1) / fusion.temperature
    shares = torch.softmax(scores, dim=0).unsqueeze(-1)
    if fusion.value_before_softmax:
        mixed = (shares * _through(weights.value, values)).sum(0)
    else:
        mixed = _through(weights.value, (shares * values).sum(0))
    return mixed if fusion.residual_before else mixed + added


def _through(weights: AffineWeights | None, x: Tensor) -> Tensor:
    return x if weights is None else linear(x, weights.weight, weights.bias)


def _average(node: Average, state: _State) -> _State:
    prepared = _prepared(first_leaf(node), state)
    states = [_child(child, prepared) for child in node.children]
    total = sum((w * s.hidden for w, s in zip(node.weights, states, strict=True)), torch.zeros_like(state.hidden))
    return replace(states[-1], hidden=total / len(states))


def _split(node: Split, state: _State) -> _State:
    first = next(leaf for leaf in _leaves(node) if leaf.adapter)
    prepared = _prepared(first, state)
    pieces, last, start = [], None, 0
    shape = (len(state.lengths), -1, state.hidden.shape[-1])  # rows of a Split are equally long
    for child, length in zip(node.children, node.lengths, strict=True):
        part = _piece(prepared, shape, start, length)
        done = part if isinstance(child, Leaf) and not child.adapter else _child(child, part)
        pieces.append(done.hidden.view(shape[0], length, -1))
        last, start = done.last or last, start + length
    return replace(prepared, hidden=torch.cat(pieces, dim=1).view_as(state.hidden), last=last)


def _piece(state: _State, shape: tuple[int, int, int], start: int, length: int) -> _State:
    def cut(x: Tensor) -> Tensor:
        return x.view(shape)[:, start : start + length].reshape(-1, shape[-1])

    return replace(
        state,
        hidden=cut(state.hidden),
        residual=cut(state.residual),
        added=cut(state.added),
        lengths=[length] * shape[0],
        last=None,
    )


def _leaves(node: Node) -> list[Leaf]:
    return [node] if isinstance(node, Leaf) else [leaf for child in node.children for leaf in _leaves(child)]


def projection(y: Tensor, x: Tensor, groups: Sequence[DeltaGroup]) -> Tensor:
    """The output of a projection with every token's own low-rank deltas and channel scales.

    y         [T, out] the projection's output; a backend may overwrite it
    x         [T, in] its input
    returns   [T, out]
    """
    parts, position = [], 0
    for group in groups:
        rows = slice(group.start, group.end)
        parts += [y[position : group.start], apply_delta(y[rows], x[rows], group)]
        position = group.end
    return torch.cat([*parts, y[position:]])


def projections(y: Tensor, x: Tensor, parts: Sequence[Sequence[DeltaGroup]]) -> Tensor:
    """Several projections of one input, equally wide and side by side, each with its own deltas and scales.

    y         [T, parts * out]; a backend may overwrite it
    x         [T, in]
    returns   [T, parts * out]
    """
    own = y.chunk(len(parts), dim=-1)
    return torch.cat([projection(part, x, groups) for part, groups in zip(own, parts, strict=True)], dim=-1)


def apply_delta(y: Tensor, x: Tensor, group: DeltaGroup) -> Tensor:
    """The rows of one group; `y` and `x` hold just these rows."""
    value = _delta(group.node, x, None, _lengths(group.samples), group)
    last = group.weights[int(last_leaf(group.node).adapter)]
    if last.is_scale:
        return y * value
    changed = y + value if last.channel is None else last.channel * (y + value)
    return changed if last.bias is None else changed + last.bias


def _delta(node: Node, x: Tensor, value: Tensor | None, lengths: Sequence[int], group: DeltaGroup) -> Tensor:
    """What a tree adds to (low-rank) or multiplies onto (scale) the output; `value` is that of the leaf before.

    In a stack, a low-rank delta reads what the one before gave, and only the last is added; scales multiply.
    """
    if isinstance(node, Leaf):
        return _low_rank(group.weights[int(node.adapter)], x, value, lengths)
    if isinstance(node, Average):
        parts = [_delta(child, x, value, lengths, group) for child in node.children]
        weighted = [weight * part for weight, part in zip(node.weights, parts, strict=True)]
        return sum(weighted[1:], weighted[0]) / len(parts)
    assert isinstance(node, Stack)
    for child in node.children:
        value = _delta(child, x, value, lengths, group)
    assert value is not None
    return value


def _low_rank(weights: DeltaWeights, x: Tensor, value: Tensor | None, lengths: Sequence[int]) -> Tensor:
    opened = gate(x, weights.gate, lengths) if weights.gate is not None else None  # [rows, G]
    if weights.is_scale:
        if weights.channel is None:  # it scaled the projection's input
            return x.new_ones(1) if value is None else value
        own = weights.channel if opened is None else weights.channel * _blocks(opened, len(weights.channel))
        return own if value is None else value * own
    assert weights.down is not None and weights.up is not None
    narrow = linear(x if value is None else value, weights.down)
    if opened is not None:
        narrow = narrow * _blocks(opened, narrow.shape[-1])
    return linear(narrow, weights.up)


def _blocks(opened: Tensor, width: int) -> Tensor:
    """Each gate for its block of `width` columns: [rows, width]."""
    return opened.unsqueeze(-1).expand(*opened.shape, width // opened.shape[-1]).flatten(-2)


def couple(x: Tensor, weights: CouplingWeights) -> Tensor:
    """y1 = x1 + f(x2), y2 = x2 + g(y1); x [rows, E]."""
    half = x.shape[-1] // 2
    first = x[..., :half] + _mlp(x[..., half:], weights.f, weights)
    return torch.cat([first, x[..., half:] + _mlp(first, weights.g, weights)], dim=-1)


def uncouple(y: Tensor, weights: CouplingWeights) -> Tensor:
    """The inverse of `couple`."""
    half = y.shape[-1] // 2
    second = y[..., half:] - _mlp(y[..., :half], weights.g, weights)
    return torch.cat([y[..., :half] - _mlp(second, weights.f, weights), second], dim=-1)


def _mlp(x: Tensor, layers: tuple[AffineWeights, AffineWeights], weights: CouplingWeights) -> Tensor:
    return _through(layers[1], weights.activation(_through(layers[0], x)))


def edit(hidden: Tensor, samples: Sequence[Span], weights: EditsWeights) -> Tensor:
    """`hidden` [T, H] with the first and last tokens of these samples edited, both from what they were before."""
    edits = weights.edits
    first = [i for a, b in samples for i in range(a, min(b, a + edits.num_first))]
    last = [i for a, b in samples for i in range(max(a, b - edits.num_last), b)]
    edited = hidden
    for unit, places in ((weights.first, first), (weights.last, last)):
        if unit is not None and places:
            index = indices(places, hidden.device)
            edited = edited.index_copy(0, index, _edit(hidden.index_select(0, index), unit, weights))
    return edited


def _edit(h: Tensor, unit: EditWeights, weights: EditsWeights) -> Tensor:
    source = _through(unit.source, h)
    if weights.activation is not None:
        source = weights.activation(source)
    if weights.edits.subtracts:
        source = source - linear(h, unit.projection)
    return h + source @ unit.projection


def _lengths(samples: Sequence[Span]) -> list[int]:
    return [end - start for start, end in samples]


def _norm(x: Tensor, weights: AffineWeights) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights.weight, weights.bias, ADAPTER_NORM_EPS)
