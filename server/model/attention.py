"""Attention over packed tokens: every sample attends to itself only, told apart by cumulative lengths.

Registered with transformers under ATTENTION_NAME, so the base's own modules call it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from server.model.packing import PackedBatch

ATTENTION_NAME = "adapterd"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Self-attention of each packed sample on its own.

    query, key, value   [1, heads, T, head size]
    returns             [1, T, heads, head size], None
    """
    stitching: Any = module.adapterd_stitching
    packed: PackedBatch | None = stitching.packed
    if packed is None:
        out = scaled_dot_product_attention(query, key, value, attention_mask, dropout_p=dropout, scale=scaling)
        return out.transpose(1, 2), None
    if query.is_cuda and query.dtype != torch.float32:
        return _varlen(query, key, value, packed, scaling), None
    return _by_length(query, key, value, packed, scaling), None


def _varlen(query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, head size]
    longest = packed.max_length
    out = varlen_attn(q, k, v, packed.cu_seqlens, packed.cu_seqlens, longest, longest, scale=scale)
    return out.unsqueeze(0)  # type: ignore[union-attr, unused-ignore]


def _by_length(query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, scale: float | None) -> Tensor:
    """One call per run of neighbours of equal length, on views: nothing is gathered or padded."""
    _, heads, _, size = query.shape
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, head size]
    parts = []
    for start, count, length in packed.equal_length_runs:
        shape = (count, length, heads, size)
        rows = slice(start, start + count * length)
        own_q, own_k, own_v = (x[rows].view(shape).transpose(1, 2) for x in (q, k, v))
        part = scaled_dot_product_attention(own_q, own_k, own_v, scale=scale)
        parts.append(part.transpose(1, 2).reshape(-1, heads, size))
    return torch.cat(parts).unsqueeze(0)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attention)
