"""DeBERTa's disentangled attention over packed rows: the module's own position terms, on equally long samples.

Queries, keys and values are projected for the packed row; scores are formed per run of neighbours of equal length, so
nothing is padded. Where position queries and keys come from the same projections as content (`share_att_key`), an
adapter's deltas on those projections reach them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from server.model.attention import AttentionRun, attention_runs
from server.model.routing import DeltaGroup
from server.primitives import Projection

if TYPE_CHECKING:
    from server.model.sites import Stitching


def stitch_disentangled(module: Any, layer: int, stitching: Stitching) -> None:
    """Replace the forward of a DisentangledSelfAttention by one that knows packed rows."""
    plain = module.forward

    def forward(hidden_states: Tensor, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
        if stitching.packed is None:
            return plain(hidden_states, attention_mask, *args, **kwargs)
        q, k, v = (project(hidden_states)[0] for project in (module.query_proj, module.key_proj, module.value_proj))
        relative = kwargs.get("rel_embeddings")
        parts = []
        for run in attention_runs(stitching, layer, split_routes=module.share_att_key):
            _probe(stitching, run, 2 * module.pos_ebd_size if module.relative_attention else 0)
            parts.append(_attend(module, run, q, k, v, relative))
            stitching.probing(None)
        return torch.cat(parts).unsqueeze(0), None

    object.__setattr__(module, "forward", forward)


def _probe(stitching: Stitching, run: AttentionRun, num_rows: int) -> None:
    """What is projected besides tokens, `num_rows` position embeddings, takes the deltas of the run's own route."""
    plan = stitching.plan

    def probe(at: int, projection: Projection) -> Sequence[DeltaGroup]:
        groups = plan.projection(at, projection) if plan else ()
        own = [group for group in groups if group.start <= run.start < group.end]
        return [replace(group, start=0, end=num_rows, samples=((0, num_rows),)) for group in own]

    stitching.probing(probe)


def _attend(module: Any, run: AttentionRun, q: Tensor, k: Tensor, v: Tensor, relative: Tensor | None) -> Tensor:
    """[tokens of the run, H]"""
    count, length, heads = run.count, run.length, module.num_attention_heads
    rows = slice(run.start, run.end)
    query, key, value = (_heads(x[rows], count, length, heads) for x in (q, k, v))  # [count * heads, length, size]
    factor = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    scale = math.sqrt(query.shape[-1] * factor)
    scores = query @ key.transpose(-1, -2) / scale
    if module.relative_attention:
        assert relative is not None
        scores = scores + module.disentangled_attention_bias(query, key, None, module.pos_dropout(relative), factor)
    if run.prefix is not None:
        own_keys, own_values = run.prefix  # [count, P, H]
        prefix_keys = _heads(own_keys.flatten(0, 1), count, own_keys.shape[1], heads)
        prefix_values = _heads(own_values.flatten(0, 1), count, own_values.shape[1], heads)
        scores = pad(scores, (prefix_keys.shape[1], 0)) + pad(
            query @ prefix_keys.transpose(-1, -2) / scale, (0, length)
        )
        value = torch.cat([prefix_values, value], dim=1)
    shares: Tensor = module.dropout(torch.softmax(scores, dim=-1))
    context = shares @ value
    return context.view(count, heads, length, -1).transpose(1, 2).reshape(count * length, -1)


def _heads(x: Tensor, count: int, length: int, heads: int) -> Tensor:
    return x.view(count, length, heads, -1).transpose(1, 2).reshape(count * heads, length, -1)
