"""Attention over packed tokens: every sample attends to itself only, and to the prefixes of its own adapters.

Registered with transformers under ATTENTION_NAME, so the base's own modules call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from server.model.kernels.reference import gates
from server.model.routing import PrefixGroup, Span

if TYPE_CHECKING:
    from server.model.sites import Stitching

ATTENTION_NAME = "adapterd"


@dataclass(frozen=True, slots=True, eq=False)
class AttentionRun:
    """`count` neighbouring samples of equal length and equal prefixes, from token `start` on.

    prefix   keys and values [count, P, H] in front of the samples' own, or None
    """

    start: int
    count: int
    length: int
    prefix: tuple[Tensor, Tensor] | None = None

    @property
    def end(self) -> int:
        return self.start + self.count * self.length


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Self-attention of each packed sample on its own.

    query, key, value   [1, heads, T, head size]
    sliding_window      tokens this far apart no longer see each other
    returns             [1, T, heads, head size], None
    """
    stitching: Stitching = module.adapterd_stitching  # type: ignore[assignment]
    if stitching.packed is None:
        out = scaled_dot_product_attention(query, key, value, attention_mask, dropout_p=dropout, scale=scaling)
        return out.transpose(1, 2), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, head size]
    layer: int = module.adapterd_layer  # type: ignore[assignment]
    has_prefixes = bool(stitching.plan and stitching.plan.prefixes(layer))
    if q.is_cuda and q.dtype != torch.float32 and not has_prefixes:
        return _varlen(q, k, v, stitching, scaling, sliding_window), None
    parts = [_attend(run, q, k, v, scaling, sliding_window) for run in attention_runs(stitching, layer)]
    return torch.cat(parts).unsqueeze(0), None


def attention_runs(stitching: Stitching, layer: int, *, split_routes: bool = False) -> list[AttentionRun]:
    """The rows of the pass as runs that can be attended to in one call, in order.

    split_routes   whether a run may not hold rows of different routes
    """
    packed, plan = stitching.packed, stitching.plan
    assert packed is not None
    groups = plan.prefixes(layer) if plan else ()
    if not groups and not split_routes:
        return [AttentionRun(*run) for run in packed.equal_length_runs]
    runs: list[AttentionRun] = []
    prefixed = {span: group for group in groups for span in group.samples}
    borders = plan.borders if plan and split_routes else frozenset()
    for spans in _alike(packed.spans, prefixed, borders):
        start, length = spans[0][0], spans[0][1] - spans[0][0]
        group = prefixed.get(spans[0])
        prefix = _prefix(group, spans, stitching) if group else None
        runs.append(AttentionRun(start, len(spans), length, prefix))
    return runs


def _alike(spans: Sequence[Span], prefixed: dict[Span, PrefixGroup], borders: frozenset[int]) -> list[list[Span]]:
    """Neighbours of equal length in the same prefix group, cut at `borders`."""
    found: list[list[Span]] = []
    for span in spans:
        last = found[-1][-1] if found else None
        if (
            last is not None
            and last[1] - last[0] == span[1] - span[0]
            and prefixed.get(last) is prefixed.get(span)
            and span[0] not in borders
        ):
            found[-1].append(span)
        else:
            found.append([span])
    return found


def _prefix(group: PrefixGroup, spans: Sequence[Span], stitching: Stitching) -> tuple[Tensor, Tensor]:
    """Keys and values [count, P, H] of a group's prefixes for these samples, with each sample's own gates."""
    assert stitching.layer_input is not None
    x = stitching.layer_input[spans[0][0] : spans[-1][1]]
    lengths = [end - start for start, end in spans]
    keys, values = [], []
    for weights in group.prefixes:
        own_keys = weights.keys.expand(len(spans), -1, -1)
        own_values = weights.values.expand(len(spans), -1, -1)
        if weights.gate is not None:
            opened = gates(x, weights.gate, lengths)  # [count, 1 or 2]
            own_keys = own_keys * opened[:, :1, None]
            own_values = own_values * opened[:, -1:, None]
        keys.append(own_keys)
        values.append(own_values)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def _attend(run: AttentionRun, q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None) -> Tensor:
    """[tokens of the run, heads, head size], on views of q, k and v where there is no prefix."""
    _, heads, size = q.shape
    shape = (run.count, run.length, heads, size)
    own_q, own_k, own_v = (x[run.start : run.end].view(shape).transpose(1, 2) for x in (q, k, v))
    if run.prefix is not None:
        prefix_k, prefix_v = (x.view(run.count, -1, heads, size).transpose(1, 2) for x in run.prefix)
        own_k, own_v = torch.cat([prefix_k, own_k], dim=2), torch.cat([prefix_v, own_v], dim=2)
    mask = None
    if window is not None and run.length > window:
        position = torch.arange(run.length, device=q.device)
        mask = (position[:, None] - position[None, :]).abs() < window
    out = scaled_dot_product_attention(own_q, own_k, own_v, mask, scale=scale)
    return out.transpose(1, 2).reshape(-1, heads, size)


def _varlen(q: Tensor, k: Tensor, v: Tensor, stitching: Stitching, scale: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    packed = stitching.packed
    assert packed is not None
    longest = packed.max_length
    sides = (-1, -1) if window is None else (window - 1, window - 1)
    out = varlen_attn(q, k, v, packed.cu_seqlens, packed.cu_seqlens, longest, longest, scale=scale, window_size=sides)
    return out.unsqueeze(0)  # type: ignore[union-attr, unused-ignore]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attention)
