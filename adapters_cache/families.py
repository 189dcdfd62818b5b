"""Where each model family keeps its layers, in the words of checkpoint keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from server.errors import UnsupportedConfig
from server.primitives import Projection, SiteKind


@dataclass(frozen=True, slots=True)
class Family:
    """Key paths of one family.

    prefix            in front of every key where the model had a head; may be missing in any file
    static_class      what names of classic classes with one fixed head start with; empty: none is known
    layers            path of a layer, with {0} for its number, or {0} and {1} for group and number within it
    sites             modules below a layer that hold the collections of bottlenecks and fusions
    projections       Linears below a layer that take deltas
    prefix_module     below a layer, what holds prefix gates; None: the family takes no prefixes and no prompts
    prefix_store      what the prefix store calls the self-attention
    pools_tokens      AdapterHub takes all tokens for what a pooler gives: with `use_pooler` a head answers every token
    is_plugin         bottlenecks hang on hooks: the layer's own LayerNorm never runs after them
    intermediate_factor   outputs of the first feed-forward projection per unit of the intermediate size
    """

    prefix: str
    model_class: str
    static_class: str
    layers: str
    sites: Mapping[SiteKind, str]
    projections: Mapping[Projection, str]
    prefix_module: str | None
    prefix_store: str = "self_prefix"
    has_pooler: bool = True
    pools_tokens: bool = False
    is_plugin: bool = False
    intermediate_factor: int = 1

    @property
    def file_prefix(self) -> str:
        """What the library writes in front of every key."""
        return "" if self.is_plugin else self.prefix

    def layer(self, number: int, per_group: int = 1) -> str:
        """Give the path of a layer; `per_group` is the base's `layers_per_group`."""
        return self.layers.format(*divmod(number, per_group))

    def site(self, number: int, kind: SiteKind, per_group: int = 1) -> str:
        """Give the path of a site's adapters, without the adapter's name."""
        return f"{self.layer(number, per_group)}.{self.sites[kind]}.adapters"


_NAMED_SITES = {SiteKind.ATTENTION: "attention_adapters", SiteKind.OUTPUT: "output_adapters"}
_BERT = Family(
    prefix="bert.",
    model_class="BertAdapterModel",
    static_class="BertFor",
    layers="encoder.layer.{0}",
    sites={SiteKind.ATTENTION: "attention.output", SiteKind.OUTPUT: "output"},
    projections={
        Projection.QUERY: "attention.self.query",
        Projection.KEY: "attention.self.key",
        Projection.VALUE: "attention.self.value",
        Projection.INTERMEDIATE: "intermediate.dense",
        Projection.OUTPUT: "output.dense",
    },
    prefix_module="attention.self.prefix_tuning",
)
_ROBERTA = replace(_BERT, prefix="roberta.", model_class="RobertaAdapterModel", static_class="RobertaFor")
_DISTILBERT = Family(
    prefix="distilbert.",
    model_class="DistilBertAdapterModel",
    static_class="DistilBertFor",
    layers="transformer.layer.{0}",
    sites=_NAMED_SITES,
    projections={
        Projection.QUERY: "attention.q_lin",
        Projection.KEY: "attention.k_lin",
        Projection.VALUE: "attention.v_lin",
        Projection.INTERMEDIATE: "ffn.lin1",
        Projection.OUTPUT: "ffn.lin2",
    },
    prefix_module="attention.prefix_tuning",
    prefix_store="self",
    has_pooler=False,
)
_ALBERT = Family(
    prefix="albert.",
    model_class="AlbertAdapterModel",
    static_class="AlbertFor",
    layers="encoder.albert_layer_groups.{0}.albert_layers.{1}",
    sites={SiteKind.ATTENTION: "attention.attention_adapters", SiteKind.OUTPUT: "output_adapters"},
    projections={
        Projection.QUERY: "attention.query",
        Projection.KEY: "attention.key",
        Projection.VALUE: "attention.value",
        Projection.INTERMEDIATE: "ffn",
        Projection.OUTPUT: "ffn_output",
    },
    prefix_module="attention.prefix_tuning",
)
_DEBERTA = replace(
    _BERT,
    prefix="deberta.",
    model_class="DebertaV2AdapterModel",
    static_class="DebertaV2For",
    projections={
        **_BERT.projections,
        Projection.QUERY: "attention.self.query_proj",
        Projection.KEY: "attention.self.key_proj",
        Projection.VALUE: "attention.self.value_proj",
    },
    has_pooler=False,
    pools_tokens=True,
)
_MODERNBERT = Family(
    prefix="model.",
    model_class="ModernBertModel",
    static_class="",
    layers="layers.{0}",
    sites=_NAMED_SITES,
    projections={
        Projection.QKV: "attn.Wqkv",
        Projection.INTERMEDIATE: "mlp.Wi",
        Projection.OUTPUT: "mlp.Wo",
    },
    prefix_module=None,
    has_pooler=False,
    is_plugin=True,
    intermediate_factor=2,
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, model_class="XLMRobertaAdapterModel", static_class="XLMRobertaFor"),
    "distilbert": _DISTILBERT,
    "electra": replace(
        _BERT, prefix="electra.", model_class="ElectraAdapterModel", static_class="ElectraFor", has_pooler=False
    ),
    "albert": _ALBERT,
    "deberta-v2": _DEBERTA,
    "modernbert": _MODERNBERT,
}


def family_of(model_type: str) -> Family:
    """Raises UnsupportedConfig for families whose layers are not known here."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(FAMILIES)
        raise UnsupportedConfig(
            f"model_type {model_type!r} is not supported; supported are {known}",
            field="model_type",
            value=model_type,
        ) from None
