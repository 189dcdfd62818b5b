"""The table of model families: where each takes adapters. Paths are relative to a layer unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from server.primitives import Projection, SiteKind


@dataclass(frozen=True, slots=True)
class Ending:
    """A module of dense, dropout and LayerNorm, called with the sub-layer's output and its residual."""

    module: str


@dataclass(frozen=True, slots=True)
class Around:
    """A LayerNorm whose argument is a sum that is formed in the layer's own forward.

    hidden, residual   the two terms: what goes into or comes out of a module
    """

    norm: str
    hidden: tuple[str, Literal["in", "out"]]
    residual: tuple[str, Literal["in", "out"]]


@dataclass(frozen=True, slots=True)
class Behind:
    """A projection after which the layer adds its residual by itself, without a LayerNorm.

    residual   module whose input plays the residual
    norm       path in the model of the LayerNorm that adapters see, None for none
    """

    projection: str
    residual: str
    norm: str | None


Site = Ending | Around | Behind


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    layers            all layers, in the order of checkpoint numbers
    attention         module that reads the layer's input and calls the attention function
    embeddings, words paths in the model: the whole embeddings module, and the word embeddings in it
    position_offset   first position id, given the base's configuration
    inputs            what the model's forward takes besides token ids
    pooler            the base's own pooler on vectors [n, H], None where there is none
    is_disentangled   attention is computed by the module itself, on equally long samples (DeBERTa)
    is_static         whether the base's forward does the same for any two inputs of one shape, so that graphs can do it
    """

    layers: Callable[[Any], list[nn.Module]]
    attention: str
    sites: Mapping[SiteKind, Site]
    projections: Mapping[Projection, str]
    embeddings: str = "embeddings"
    words: str = "embeddings.word_embeddings"
    position_offset: Callable[[Any], int] = lambda config: 0
    inputs: tuple[str, ...] = ("position_ids", "token_type_ids")
    pooler: Callable[[Any], Callable[[Tensor], Tensor] | None] = lambda model: None
    is_disentangled: bool = False
    is_static: bool = False


def _bert_pooler(model: Any) -> Callable[[Tensor], Tensor] | None:
    return None if model.pooler is None else lambda vectors: model.pooler(vectors.unsqueeze(1))


def _albert_pooler(model: Any) -> Callable[[Tensor], Tensor] | None:
    return None if model.pooler is None else lambda vectors: model.pooler_activation(model.pooler(vectors))


def _albert_layers(model: Any) -> list[nn.Module]:
    return [layer for group in model.encoder.albert_layer_groups for layer in group.albert_layers]


_ATTENTION, _OUTPUT = SiteKind.ATTENTION, SiteKind.OUTPUT
_BERT_SITES: Mapping[SiteKind, Site] = {_ATTENTION: Ending("attention.output"), _OUTPUT: Ending("output")}


def _projections(
    query: str, key: str, value: str, attention_output: str, intermediate: str, output: str
) -> Mapping[Projection, str]:
    return {
        Projection.QUERY: query,
        Projection.KEY: key,
        Projection.VALUE: value,
        Projection.ATTENTION_OUTPUT: attention_output,
        Projection.INTERMEDIATE: intermediate,
        Projection.OUTPUT: output,
    }


def _under(path: str, suffix: str = "") -> tuple[str, str, str]:
    query, key, value = (f"{path}.{name}{suffix}" for name in ("query", "key", "value"))
    return query, key, value


_BERT = Family(
    layers=lambda model: list(model.encoder.layer),
    attention="attention.self",
    sites=_BERT_SITES,
    projections=_projections(*_under("attention.self"), "attention.output.dense", "intermediate.dense", "output.dense"),
    pooler=_bert_pooler,
    is_static=True,
)
_ROBERTA = Family(
    layers=_BERT.layers,
    attention=_BERT.attention,
    sites=_BERT_SITES,
    projections=_BERT.projections,
    position_offset=lambda config: int(config.pad_token_id) + 1,
    pooler=_bert_pooler,
    is_static=True,
)
_ELECTRA = Family(
    layers=_BERT.layers,
    attention=_BERT.attention,
    sites=_BERT_SITES,
    projections=_BERT.projections,
    is_static=True,
)
_DEBERTA = Family(
    layers=_BERT.layers,
    attention="attention.self",
    sites=_BERT_SITES,
    projections=_projections(
        *_under("attention.self", "_proj"), "attention.output.dense", "intermediate.dense", "output.dense"
    ),
    is_disentangled=True,
)
_DISTILBERT = Family(
    layers=lambda model: list(model.transformer.layer),
    attention="attention",
    sites={
        _ATTENTION: Around("sa_layer_norm", ("attention", "out"), ("attention", "in")),
        _OUTPUT: Around("output_layer_norm", ("ffn", "out"), ("ffn", "in")),
    },
    projections=_projections(
        "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"
    ),
    inputs=("position_ids",),
    is_static=True,
)
_ALBERT = Family(
    layers=_albert_layers,
    attention="attention",
    sites={
        # The bottleneck transforms the layer's input and the attention output plays the residual.
        _ATTENTION: Around("attention.LayerNorm", ("attention", "in"), ("attention.output_dropout", "out")),
        _OUTPUT: Around("full_layer_layer_norm", ("ffn_output", "out"), ("ffn", "in")),
    },
    projections=_projections(*_under("attention"), "attention.dense", "ffn", "ffn_output"),
    pooler=_albert_pooler,
    is_static=True,
)
_MODERNBERT = Family(
    layers=lambda model: list(model.layers),
    attention="attn",
    sites={
        # The last layer's norm for all of them: so AdapterHub's library trained its adapters.
        _ATTENTION: Behind("attn.Wo", "attn", "layers.{last}.mlp_norm"),
        _OUTPUT: Behind("mlp.Wo", "mlp", None),
    },
    projections={
        Projection.QKV: "attn.Wqkv",
        Projection.ATTENTION_OUTPUT: "attn.Wo",
        Projection.INTERMEDIATE: "mlp.Wi",
        Projection.OUTPUT: "mlp.Wo",
    },
    words="embeddings.tok_embeddings",
    inputs=("position_ids",),
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "electra": _ELECTRA,
    "deberta-v2": _DEBERTA,
    "distilbert": _DISTILBERT,
    "albert": _ALBERT,
    "modernbert": _MODERNBERT,
}
