"""Prediction heads -> the head primitive."""

from __future__ import annotations

from adapters_cache.flat import FlatBuilder, TensorSource
from adapters_cache.formats.checkpoint import HeadCheckpoint
from adapters_cache.formats.heads import READS_TOKENS
from adapters_cache.lower_bottleneck import SAME_ACTIVATION
from server.core import BaseInfo
from server.errors import UnsupportedConfig
from server.primitives import Affine, Head, HeadLayer, Task

TASKS = {
    "classification": Task.CLASSIFICATION,
    "multilabel_classification": Task.MULTI_LABEL,
    "tagging": Task.TOKEN_CLASSIFICATION,
    "question_answering": Task.QUESTION_ANSWERING,
}


def lower_head(head: HeadCheckpoint, base: BaseInfo, flat: FlatBuilder) -> Head:
    """Lay out a head's Linears.

    Raises MalformedCheckpoint unless its tensors are exactly what it describes, UnsupportedConfig if it reads a pooler
    that the base lacks.
    """
    config, source = head.config, TensorSource(head.tensors)
    if config["use_pooler"] and not base.has_pooler:
        raise UnsupportedConfig(
            f"head {head.name!r} has use_pooler true and this base has no pooler; serve it on a base that has one",
            field="use_pooler",
        )
    task = TASKS[config["head_type"]]
    if task is Task.CLASSIFICATION and config["num_labels"] == 1:
        task = Task.REGRESSION
    layers = _layers(head, base.hidden_size, source, flat)
    source.check_empty()
    return Head(
        name=head.name,
        task=task,
        layers=layers,
        labels=config["labels"],
        reads_tokens=config["head_type"] in READS_TOKENS,
        use_pooler=config["use_pooler"],
    )


def _layers(head: HeadCheckpoint, hidden_size: int, source: TensorSource, flat: FlatBuilder) -> tuple[HeadLayer, ...]:
    """Indices count every module: [Dropout, Linear, activation if any] x (layers - 1), Dropout, Linear."""
    config = head.config
    activation = config["activation_function"]
    stride = 2 if activation is None else 3
    layers = []
    for number in range(config["layers"]):
        is_last = number == config["layers"] - 1
        size = config["num_labels"] if is_last else hidden_size
        key = f"heads.{1 + stride * number}"
        weight = flat.add(source.take(f"{key}.weight", size, hidden_size))
        bias = flat.add(source.take(f"{key}.bias", size)) if config["bias"] or not is_last else None
        layers.append(HeadLayer(Affine(weight, bias), None if is_last else SAME_ACTIVATION.get(activation, activation)))
    return tuple(layers)
