"""Prefix tuning -> keys and values per layer; prompt tuning -> embeddings. Both are functions of weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN

from adapters_cache.draft import EMBEDDINGS, Draft
from adapters_cache.formats.fields import refusal
from server.primitives import Prefix, Prompt

PROMPT = "prompt_tuning.prompt_tunings.prompt_embedding.weight"


def lower_prefix(config: Mapping[str, Any], draft: Draft) -> None:
    """Evaluate the store once and cut it into layers. Raises MalformedCheckpoint, UnsupportedConfig."""
    module = draft.family.prefix_module
    if module is None:
        raise refusal("config.architecture", "prefix_tuning", "a method that this family takes")
    layers = [layer for layer in range(draft.base.num_layers) if layer not in config["leave_out"]]
    for layer in layers:
        draft.check_free(draft.prefixes, layer, f"the prefix of layer {layer}")
    length, hidden = config["prefix_length"], draft.base.hidden_size
    store = _store(config, draft, len(layers)).view(length, len(layers), 2, hidden)
    for place, layer in enumerate(layers):
        gate = None
        if config["use_gating"]:
            path = f"{draft.layer(layer)}.{module}.prefix_gates"
            gate = draft.affine(path, 1 if config["shared_gating"] else 2, hidden)
        keys, values = (draft.flat.add(store[:, place, which]) for which in (0, 1))
        draft.put(draft.prefixes, layer, Prefix(keys, values, gate), f"the prefix of layer {layer}")


def _store(config: Mapping[str, Any], draft: Draft, num_layers: int) -> Tensor:
    """[P, layers * 2 * H], or flat"""
    path = f"prefix_tuning.prefix_tunings.{draft.family.prefix_store}"
    length, hidden, take = config["prefix_length"], draft.base.hidden_size, draft.source.take
    size, width = num_layers * 2 * hidden, config["bottleneck_size"]
    if config["flat"]:
        return take(f"{path}.control_trans", length * size)
    name = config["non_linearity"]
    activation = ACT2FN["leaky_relu" if name == "leakyrelu" else name]
    x = take(f"{path}.wte.weight", length, hidden)
    x = x @ take(f"{path}.control_trans.0.weight", width, hidden).t() + take(f"{path}.control_trans.0.bias", width)
    weight = take(f"{path}.control_trans.2.weight", size, width)
    stored: Tensor = activation(x) @ weight.t() + take(f"{path}.control_trans.2.bias", size)
    return stored


def lower_prompt(config: Mapping[str, Any], draft: Draft) -> None:
    """Raises MalformedCheckpoint, UnsupportedConfig."""
    if draft.family.prefix_module is None:
        raise refusal("config.architecture", "prompt_tuning", "a method that this family takes")
    draft.check_free(draft.prompts, EMBEDDINGS, "the prompt")
    embeddings = draft.source.take(PROMPT, config["prompt_length"], draft.embedding_size)
    draft.set_prompt(Prompt(draft.flat.add(embeddings), config["combine"] == "prefix_after_bos"))
