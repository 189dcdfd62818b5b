"""Prediction heads: each row's answer from its own head, or its pooled vector where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from server.core import Encoding, Pooling
from server.errors import InvalidInput
from server.model.upload import download, indices
from server.model.weights import CouplingWeights, HeadWeights
from server.primitives import Task

Span = tuple[int, int]
LANGUAGE_MODELS = (Task.FILL_MASK, Task.CAUSAL_LM)


@dataclass(frozen=True, slots=True, eq=False)
class HeadBase:
    """What heads need of the base.

    pooler       on vectors [n, H]; None where the base has none
    embeddings   input embedding matrix [vocab, E], the decoder of language models that share it
    norm_eps     epsilon of the base's LayerNorms
    """

    pooler: Callable[[Tensor], Tensor] | None
    embeddings: Tensor
    norm_eps: float
    mask_token_id: int | None


@dataclass(frozen=True, slots=True, eq=False)
class HeadRow:
    """One row that a head answers.

    span       its tokens
    prompt     where in it a prompt begins and ends, which answers per token leave out
    coupling   the coupling on its embeddings, undone before a language model's decoder
    is_whole   answer for every token, prompts and unmasked tokens too (verification)
    """

    span: Span
    encoding: Encoding
    prompt: Span = (0, 0)
    coupling: CouplingWeights | None = None
    is_whole: bool = False


def run_head(
    weights: HeadWeights,
    hidden: Tensor,
    rows: Sequence[HeadRow],
    base: HeadBase,
    uncouple: Callable[[Tensor, CouplingWeights], Tensor],
) -> list[tuple[Tensor, ...]]:
    """Answers of the rows that share one head.

    hidden    [T, H]
    returns   per row ([C],), ([tokens, C],) for heads that read tokens, (arcs, relations) for parsers
    """
    head = weights.head
    if head.biaffine is not None:
        return [_parse(weights, hidden, row) for row in rows]
    if head.task in LANGUAGE_MODELS:
        return [(_language_model(weights, _read(hidden, row, base), row, base, uncouple),) for row in rows]
    if head.reads_tokens:
        parts = [_answered(hidden, row) for row in rows]
        logits = _dense(weights, parts[0] if len(parts) == 1 else torch.cat(parts))
        return [(part,) for part in torch.split(logits, [len(part) for part in parts])]
    firsts = [row.span[0] for row in rows]
    first = hidden[firsts[0]][None] if len(rows) == 1 else hidden.index_select(0, indices(firsts, hidden.device))
    if head.use_pooler:
        assert base.pooler is not None, "refused when the adapter was loaded"
        first = base.pooler(first)
    return [(row,) for row in _dense(weights, first)]


def pool(hidden: Tensor, row: HeadRow, pooling: Pooling) -> Tensor:
    """One vector [H] for a row's tokens."""
    start, end = row.span
    if pooling is Pooling.CLS:
        return hidden[start]
    if pooling is Pooling.LAST:
        return hidden[end - 1]
    return _own(hidden, row).mean(dim=0)


def to_host(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to bring the tensors to the host in float32, in one transfer; the call that comes back waits for them."""
    if not tensors:
        return list
    arriving = download(torch.cat([tensor.reshape(-1).float() for tensor in tensors]))

    def wait() -> list[Tensor]:
        parts = torch.split(arriving(), [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    return wait


def _own(hidden: Tensor, row: HeadRow) -> Tensor:
    """The row's tokens without its prompt."""
    tokens, (start, end) = hidden[slice(*row.span)], row.prompt
    return torch.cat([tokens[:start], tokens[end:]]) if start else tokens[end:]


def _answered(hidden: Tensor, row: HeadRow) -> Tensor:
    """The tokens that are answered one by one."""
    return hidden[slice(*row.span)] if row.is_whole else _own(hidden, row)


def _read(hidden: Tensor, row: HeadRow, base: HeadBase) -> Tensor:
    """What a language model reads of a row: all tokens, or where the row has masks."""
    tokens = _answered(hidden, row)
    if row.is_whole:
        return tokens
    masks = [i for i, token in enumerate(row.encoding.input_ids) if token == base.mask_token_id]
    return tokens.index_select(0, indices(masks, tokens.device))


def _dense(weights: HeadWeights, x: Tensor) -> Tensor:
    for dense, activation, _ in weights.layers:
        x = linear(x, dense.weight, dense.bias)
        if activation is not None:
            x = activation(x)
    return x


def _language_model(
    weights: HeadWeights,
    x: Tensor,
    row: HeadRow,
    base: HeadBase,
    uncouple: Callable[[Tensor, CouplingWeights], Tensor],
) -> Tensor:
    """[tokens, vocab]: dense layers, the inverse coupling, the decoder."""
    *before, (decoder, _, _) = weights.layers
    for dense, activation, norm in before:
        x = linear(x, dense.weight, dense.bias)
        x = activation(x) if activation is not None else x
        if norm is not None:
            x = layer_norm(x, x.shape[-1:], norm.weight, norm.bias, base.norm_eps)
    if row.coupling is not None:
        x = uncouple(x, row.coupling)
    return linear(x, base.embeddings if weights.head.is_decoder_tied else decoder.weight, decoder.bias)


def _parse(weights: HeadWeights, hidden: Tensor, row: HeadRow) -> tuple[Tensor, Tensor]:
    """Scores of each word's head, [W, W+1] (0 is the root), and of the relation to it, [W, W+1, C]."""
    assert weights.arcs is not None and weights.relations is not None
    starts = row.encoding.word_starts
    if len(starts) < 2:
        raise InvalidInput("a dependency parser needs words; send text, not token ids")
    own = _own(hidden, row)
    words = torch.stack([own[a:b].mean(dim=0) for a, b in zip(starts, starts[1:], strict=False)])
    heads = torch.cat([own[:1], words])
    dependents = _with_one(words)
    arcs = dependents @ weights.arcs[0] @ heads.T
    relations = torch.einsum("wi,cij,hj->whc", dependents, weights.relations, _with_one(heads))
    return arcs, relations


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)
