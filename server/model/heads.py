"""Prediction heads: each sample's answer from its own head, or its pooled vector where the adapter has none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from server.core import Pooling
from server.model.slots import HeadWeights


def run_head(
    weights: HeadWeights, hidden: Tensor, spans: Sequence[tuple[int, int]], pooler: nn.Module | None
) -> list[Tensor]:
    """Logits of neighbouring samples that share one head.

    hidden    [T, H]
    spans     tokens start..end of each sample, adjacent to each other
    pooler    the base's pooler
    returns   per sample [C], or [tokens, C] for heads that read tokens
    """
    if weights.head.reads_tokens:
        logits = _dense(weights, hidden[spans[0][0] : spans[-1][1]])
        return list(torch.split(logits, [end - start for start, end in spans]))
    first = hidden[[start for start, _ in spans]]
    if weights.head.use_pooler:
        assert pooler is not None, "refused when the adapter was loaded"
        first = pooler(first.unsqueeze(1))
    return list(_dense(weights, first))


def pool(hidden: Tensor, span: tuple[int, int], pooling: Pooling) -> Tensor:
    """One vector [H] for a sample's tokens."""
    start, end = span
    if pooling is Pooling.CLS:
        return hidden[start]
    if pooling is Pooling.LAST:
        return hidden[end - 1]
    return hidden[start:end].mean(dim=0)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in float32 on the host, in one transfer."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _dense(weights: HeadWeights, x: Tensor) -> Tensor:
    for dense, activation in weights.layers:
        x = linear(x, dense.weight, dense.bias)
        if activation is not None:
            x = activation(x)
    return x
