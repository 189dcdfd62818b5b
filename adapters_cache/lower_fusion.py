"""AdapterFusion layers -> the fusion primitive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters_cache.draft import Draft
from adapters_cache.formats.fusions import sites_of
from server.errors import MalformedCheckpoint
from server.primitives import Affine, Fusion, FusionSite

START_TEMPERATURE = 50.0  # the library lowers it at every call and does not save it


def lower_fusion(config: Mapping[str, Any], draft: Draft) -> Fusion:
    """Lower every site the file has; a kind of site is in all layers or in none. Raises MalformedCheckpoint."""
    sites = {}
    for kind in sites_of(draft.source.keys(), draft.family):
        for layer in range(draft.base.num_layers):
            path = f"{draft.layer(layer)}.{draft.family.sites[kind]}.adapter_fusion_layer"
            sites[layer, kind] = _site(config, path, draft)
    if not sites:
        raise MalformedCheckpoint("the file holds no fusion layer of this name", tensor="adapter_fusion_layer")
    return Fusion(
        members=tuple(config["members"]),
        query_before_ln=config["query_before_ln"],
        residual_before=config["residual_before"],
        value_before_softmax=config["value_before_softmax"],
        temperature=START_TEMPERATURE if config["temperature"] else 1.0,
        sites=sites,
    )


def _site(config: Mapping[str, Any], path: str, draft: Draft) -> FusionSite:
    hidden = draft.base.hidden_size
    size = (hidden, hidden)
    query = draft.affine(f"{path}.query", *size) if config["query"] else None
    key = draft.affine(f"{path}.key", *size) if config["key"] else None
    value = None
    if config["value"]:
        value = Affine(draft.flat.add(draft.source.take(f"{path}.value.weight", *size)), None)
    if not (config["query"] or config["key"] or config["value"]):
        draft.source.take(f"{path}.dense.weight", *size)  # the library has it and never reads it
        draft.source.take(f"{path}.dense.bias", hidden)
    return FusionSite(query, key, value)
