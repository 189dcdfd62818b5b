"""Heads that PEFT saved with an adapter (`modules_to_save`) -> the flexible head that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters_cache.flat import TensorSource
from adapters_cache.formats.checkpoint import Checkpoint, HeadCheckpoint
from adapters_cache.formats.heads import canonical_head
from server.errors import MalformedCheckpoint, UnsupportedConfig

# Of ...ForSequenceClassification: the hidden layer, its activation, the last layer.
_TWO_LAYERS: Mapping[str, tuple[str, str, str]] = {
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
    "deberta-v2": ("pooler.dense", "gelu", "classifier"),
}
_POOLERS = {"bert": "bert.pooler.dense", "albert": "albert.pooler"}  # the base's own, unless trained along


def take_head(checkpoint: Checkpoint, task: str | None, model_type: str, source: TensorSource) -> HeadCheckpoint | None:
    """Take the head's tensors. Raises UnsupportedConfig, MalformedCheckpoint where a part is missing."""
    if task in (None, "FEATURE_EXTRACTION"):
        return None
    layers, config = _layout(checkpoint, task, model_type)
    last = checkpoint.tensors.get(f"{layers[-1]}.weight")
    if last is None or last.ndim != 2:
        raise MalformedCheckpoint(
            f"task_type is {task}, but the head's {layers[-1]}.weight is missing", tensor=f"{layers[-1]}.weight"
        )
    stride = 2 if config.get("activation_function") is None else 3
    tensors = {}
    for number, name in enumerate(layers):
        weight = checkpoint.tensors.get(f"{name}.weight")
        if weight is None:
            raise MalformedCheckpoint(
                f"the head's {name}.weight is missing: it is no part of the base either, so it was never saved;"
                f" name it in modules_to_save when training",
                tensor=f"{name}.weight",
            )
        key = f"heads.{1 + stride * number}"
        tensors[f"{key}.weight"] = source.take(f"{name}.weight", *weight.shape)
        tensors[f"{key}.bias"] = source.take(f"{name}.bias", weight.shape[0])
    canonical = canonical_head(config | {"num_labels": last.shape[0], "layers": len(layers)})
    return HeadCheckpoint(checkpoint.name, canonical, tensors)


def _layout(checkpoint: Checkpoint, task: str, model_type: str) -> tuple[list[str], dict[str, Any]]:
    """Names of the Linears in order, and the flexible head's configuration."""
    if model_type == "modernbert":
        raise UnsupportedConfig(
            f"task_type {task} of modernbert is not served: its head pools and normalises as the base's configuration"
            " says, and PEFT does not save all of it",
            field="adapter_config.task_type",
            value=task,
        )
    if task == "TOKEN_CLS":
        return ["classifier"], {"head_type": "tagging"}
    if task == "QUESTION_ANS":
        return ["qa_outputs"], {"head_type": "question_answering"}
    if model_type in _TWO_LAYERS:
        first, activation, last = _TWO_LAYERS[model_type]
        return [first, last], {"head_type": "classification", "activation_function": activation}
    pooler = _POOLERS[model_type]
    if f"{pooler}.weight" in checkpoint.tensors:
        return [pooler, "classifier"], {"head_type": "classification", "activation_function": "tanh"}
    return ["classifier"], {"head_type": "classification", "use_pooler": True}
