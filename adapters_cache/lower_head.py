"""Prediction heads -> the head primitive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters_cache.draft import BaseWeights
from adapters_cache.families import family_of
from adapters_cache.flat import FlatBuilder, TensorSource
from adapters_cache.formats.checkpoint import HeadCheckpoint
from adapters_cache.formats.fields import refusal
from adapters_cache.formats.heads import LANGUAGE_MODELS, READS_TOKENS
from adapters_cache.lower_bottleneck import SAME_ACTIVATION
from adapters_cache.lower_lm_head import language_model_layers
from server.core import BaseInfo
from server.errors import UnsupportedConfig
from server.primitives import Affine, Biaffine, Head, HeadLayer, Task

TASKS = {
    "classification": Task.CLASSIFICATION,
    "multilabel_classification": Task.MULTI_LABEL,
    "multiple_choice": Task.MULTIPLE_CHOICE,
    "tagging": Task.TOKEN_CLASSIFICATION,
    "question_answering": Task.QUESTION_ANSWERING,
    "masked_lm": Task.FILL_MASK,
    "causal_lm": Task.CAUSAL_LM,
    "dependency_parsing": Task.DEPENDENCY_PARSING,
}


def lower_head(head: HeadCheckpoint, base: BaseInfo, flat: FlatBuilder, weights: BaseWeights | None = None) -> Head:
    """Lay out a head's tensors.

    weights  the base's own: a language model's decoder that equals its embeddings is not stored again
    Raises UnsupportedConfig; MalformedCheckpoint unless the tensors are exactly what the head describes.
    """
    source = TensorSource(head.tensors)
    lowered = take_head(head.name, head.config, base, source, flat, weights)
    source.check_empty()
    return lowered


def take_head(
    name: str,
    config: Mapping[str, Any],
    base: BaseInfo,
    source: TensorSource,
    flat: FlatBuilder,
    weights: BaseWeights | None = None,
) -> Head:
    """Lay out what the canonical configuration describes, taken from `source`."""
    head_type, use_pooler = config["head_type"], config.get("use_pooler", False)
    task, reads_tokens = _task(config), head_type in READS_TOKENS
    if use_pooler and not family_of(base.model_type).has_pooler:
        task, reads_tokens, use_pooler = _without_pooler(task, base), True, False
    if use_pooler and not base.has_pooler:
        raise UnsupportedConfig(
            f"head {name!r} has use_pooler true and this base has no pooler; serve it on a base that has one",
            field="use_pooler",
        )
    layers: tuple[HeadLayer, ...] = ()
    biaffine, is_tied = None, False
    if head_type in LANGUAGE_MODELS:
        layers, is_tied = language_model_layers(config, base, source, flat, weights)
    elif head_type == "dependency_parsing":
        biaffine = _biaffine(config, base.hidden_size, source, flat)
    else:
        layers = _layers(config, base.hidden_size, source, flat)
    labels = () if task is Task.MULTIPLE_CHOICE else config["labels"]  # a request may bring any number of choices
    return Head(name, task, layers, labels, reads_tokens, use_pooler, biaffine, is_tied)


def _task(config: Mapping[str, Any]) -> Task:
    task = TASKS[config["head_type"]]
    return Task.REGRESSION if task is Task.CLASSIFICATION and config["num_labels"] == 1 else task


def _without_pooler(task: Task, base: BaseInfo) -> Task:
    """What a head that asks for a missing pooler does with every token. Raises UnsupportedConfig where it cannot."""
    over_tokens = {Task.CLASSIFICATION: Task.TOKEN_CLASSIFICATION, Task.MULTIPLE_CHOICE: Task.MULTIPLE_CHOICE}
    if not family_of(base.model_type).pools_tokens or task not in over_tokens:
        raise refusal("head_config.use_pooler", True, f"false: {base.model_type} has no pooler")
    return over_tokens[task]


def _layers(
    config: Mapping[str, Any], hidden_size: int, source: TensorSource, flat: FlatBuilder
) -> tuple[HeadLayer, ...]:
    """Indices count every module: [Dropout, Linear, activation if any] x (layers - 1), Dropout, Linear."""
    activation = config["activation_function"]
    stride = 2 if activation is None else 3
    layers = []
    for number in range(config["layers"]):
        is_last = number == config["layers"] - 1
        size = config.get("num_labels", 1) if is_last else hidden_size  # a choice has one score
        key = f"heads.{1 + stride * number}"
        weight = flat.add(source.take(f"{key}.weight", size, hidden_size))
        has_bias = config.get("bias", True) or not is_last
        bias = flat.add(source.take(f"{key}.bias", size)) if has_bias else None
        layers.append(HeadLayer(Affine(weight, bias), None if is_last else SAME_ACTIVATION.get(activation, activation)))
    return tuple(layers)


def _biaffine(config: Mapping[str, Any], hidden_size: int, source: TensorSource, flat: FlatBuilder) -> Biaffine:
    size = hidden_size + 1
    arcs = source.take("heads.biaffine_arcs.weight", 1, size, hidden_size)
    relations = source.take("heads.biaffine_rels.weight", config["num_labels"], size, size)
    return Biaffine(flat.add(arcs), flat.add(relations))
