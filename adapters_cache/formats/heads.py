"""Prediction heads of AdapterHub directories: flexible ones, and those of classic classes with one fixed head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters_cache.formats import fields as f
from adapters_cache.formats.checkpoint import HeadCheckpoint
from adapters_cache.formats.fields import Field, canonical, refusal
from adapters_cache.formats.static_heads import static_head
from server.errors import MalformedCheckpoint

MAX_LABELS = 1 << 18  # each is given a name, whatever the tensors hold
IGNORED = frozenset(("dropout_prob", "label2id"))

_LAYERS = {"activation_function": Field("tanh", f.optional_activation)}
_ON_VECTOR = _LAYERS | {"layers": Field(2, f.positive_int), "use_pooler": Field(False, f.boolean)}
_ON_TOKENS = _LAYERS | {"layers": Field(1, f.positive_int)}
_LANGUAGE_MODEL = {
    "vocab_size": Field(None, f.optional_count),  # null: the base's
    "embedding_size": Field(None, f.optional_count),
    "layers": Field(2, f.positive_int),
    "activation_function": Field("gelu", f.optional_activation),
    "layer_norm": Field(True, f.boolean),
    "bias": Field(True, f.boolean),
    "shift_labels": Field(False, f.boolean),  # of the loss
}
_LABELS = {"num_labels": Field(2, f.positive_int)}
HEAD_FIELDS: Mapping[str, Mapping[str, Field]] = {
    "classification": _ON_VECTOR | _LABELS | {"bias": Field(True, f.boolean)},
    "multilabel_classification": _ON_VECTOR | _LABELS | {"bias": Field(True, f.boolean)},
    "multiple_choice": _ON_VECTOR | {"num_choices": Field(2, f.positive_int)},
    "tagging": _ON_TOKENS | _LABELS,
    "question_answering": _ON_TOKENS | _LABELS,
    "masked_lm": _LANGUAGE_MODEL,
    "causal_lm": _LANGUAGE_MODEL | {"shift_labels": Field(True, f.boolean)},
    "dependency_parsing": _LABELS,
}
HEAD_TYPES = tuple(HEAD_FIELDS)
LANGUAGE_MODELS = frozenset(("masked_lm", "causal_lm"))
READS_TOKENS = LANGUAGE_MODELS | {"tagging", "question_answering", "dependency_parsing"}


def read_head(envelope: Mapping[str, Any], state: Mapping[str, Tensor], adapter_name: str) -> HeadCheckpoint:
    """Give the head that `head_config.json` describes. Raises UnsupportedConfig, MalformedCheckpoint."""
    config = envelope.get("config")
    if config is None:
        config, tensors = static_head(envelope, state)
        return HeadCheckpoint(adapter_name, canonical_head(config), tensors)
    if not isinstance(config, dict):
        raise refusal("head_config.config", config, "an object or null")
    name = envelope.get("name")
    if not isinstance(name, str) or not name:
        raise MalformedCheckpoint(f"head_config.json has name {name!r}, expected the name in its tensors' keys")
    own = re.compile(rf"heads\.{re.escape(name)}\.((?:\d+|biaffine_\w+)\..+)")  # a file may hold heads of other names
    tensors = {f"heads.{match[1]}": state[key] for key in state if (match := own.fullmatch(key))}
    return HeadCheckpoint(name, canonical_head(config, tolerates="version" not in envelope), tensors)


def canonical_head(config: Mapping[str, Any], *, tolerates: bool = False) -> dict[str, Any]:
    """Check a flexible head's configuration, fill in defaults, and give its labels in order as `labels`.

    tolerates  drop fields that nobody knows
    """
    head_type = config.get("head_type")
    if not isinstance(head_type, str) or head_type not in HEAD_TYPES:
        raise refusal("head_config.head_type", head_type, f"one of {', '.join(HEAD_TYPES)}")
    fields = {"head_type": Field(head_type, f.one_of(head_type)), **HEAD_FIELDS[head_type]}
    known = {name: value for name, value in config.items() if name not in IGNORED and (name in fields or not tolerates)}
    result = canonical(fields, known, "head_config")
    if head_type == "question_answering" and result["num_labels"] != 2:
        raise refusal("head_config.num_labels", result["num_labels"], "2: start and end")
    num_labels = result.get("num_labels", result.get("num_choices"))
    if num_labels and num_labels > MAX_LABELS:
        raise refusal("head_config.num_labels", num_labels, f"at most {MAX_LABELS}")
    labels = labels_of(config.get("label2id"), num_labels) if num_labels else ()
    return result | {"labels": labels}


def labels_of(label2id: Any, num_labels: int) -> tuple[str, ...]:
    """Give the label of each output; outputs without one are called LABEL_i."""
    labels = [f"LABEL_{index}" for index in range(num_labels)]
    if label2id is None:
        return tuple(labels)
    if not isinstance(label2id, dict):
        raise refusal("head_config.label2id", label2id, "an object")
    seen: set[int] = set()
    for label, index in label2id.items():
        if type(index) is not int or not 0 <= index < num_labels or index in seen:
            raise MalformedCheckpoint(
                f"label2id gives {label!r} the index {index!r}; with num_labels {num_labels} indices are distinct"
                f" and from 0 to {num_labels - 1}",
                field="label2id",
            )
        seen.add(index)
        labels[index] = label
    return tuple(labels)


def file_config(head: HeadCheckpoint) -> dict[str, Any]:
    """Give the `config` of a `head_config.json` that AdapterHub's library can load."""
    config = {key: value for key, value in head.config.items() if key != "labels"}
    labels = head.config["labels"]
    config["label2id"] = {label: index for index, label in enumerate(labels)} if labels else None
    takes_dropout = head.config["head_type"] not in {"masked_lm", "dependency_parsing"}
    return config | {"dropout_prob": None} if takes_dropout else config


def head_file_keys(head: HeadCheckpoint) -> dict[str, Tensor]:
    return {f"heads.{head.name}.{key.removeprefix('heads.')}": tensor for key, tensor in head.tensors.items()}
