"""Prediction heads of AdapterHub directories: flexible ones, and those of classic classes with one fixed head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters_cache.families import FAMILIES
from adapters_cache.formats import fields as f
from adapters_cache.formats.checkpoint import HeadCheckpoint
from adapters_cache.formats.fields import Field, canonical, refusal
from server.errors import MalformedCheckpoint, UnsupportedConfig

HEAD_TYPES = ("classification", "multilabel_classification", "tagging", "question_answering")
READS_TOKENS = frozenset(("tagging", "question_answering"))
IGNORED = frozenset(("dropout_prob", "label2id"))


def _activation(field: str, value: Any) -> str | None:
    if value is None:
        return None
    name = f.activation(field, value)
    if name == "prelu":
        raise refusal(field, value, "an activation without weights of its own")
    return name


def _fields(head_type: str) -> dict[str, Field]:
    reads_tokens = head_type in READS_TOKENS
    flag = f.one_of(None) if reads_tokens else f.boolean  # heads on tokens do not have it
    return {
        "head_type": Field(head_type, f.one_of(*HEAD_TYPES)),
        "num_labels": Field(2, f.positive_int),
        "layers": Field(1 if reads_tokens else 2, f.positive_int),
        "activation_function": Field("tanh", _activation),
        "use_pooler": Field(None if reads_tokens else False, flag),
        "bias": Field(None if reads_tokens else True, flag),
    }


def read_head(envelope: Mapping[str, Any], state: Mapping[str, Tensor], adapter_name: str) -> HeadCheckpoint:
    """Give the head that `head_config.json` describes. Raises UnsupportedConfig, MalformedCheckpoint."""
    config = envelope.get("config")
    if config is None:
        return _static_head(envelope, state, adapter_name)
    if not isinstance(config, dict):
        raise refusal("head_config.config", config, "an object or null")
    name = envelope.get("name")
    if not isinstance(name, str) or not name:
        raise MalformedCheckpoint(f"head_config.json has name {name!r}, expected the name in its tensors' keys")
    own = re.compile(rf"heads\.{re.escape(name)}\.(\d+\..+)")  # a file may hold heads of other names
    tensors = {f"heads.{match[1]}": state[key] for key in state if (match := own.fullmatch(key))}
    return HeadCheckpoint(name, canonical_head(config), tensors)


def canonical_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a flexible head's configuration, fill in defaults, and give its labels in order as `labels`."""
    head_type = config.get("head_type")
    if not isinstance(head_type, str) or head_type not in HEAD_TYPES:
        raise refusal("head_config.head_type", head_type, f"one of {', '.join(HEAD_TYPES)}")
    known = {name: value for name, value in config.items() if name not in IGNORED}
    result = canonical(_fields(head_type), known, "head_config")
    result["use_pooler"] = bool(result["use_pooler"])
    result["bias"] = result["bias"] is not False
    if head_type == "question_answering" and result["num_labels"] != 2:
        raise refusal("head_config.num_labels", result["num_labels"], "2: start and end")
    return result | {"labels": labels_of(config.get("label2id"), result["num_labels"])}


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


def _static_head(envelope: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> HeadCheckpoint:
    """Rewrite the head of a classic class as the flexible head that computes the same."""
    model_class, model_type = envelope.get("model_class"), envelope.get("model_type")
    config, sources = _static_layout(str(model_class), str(model_type))
    label2id = envelope.get("label2id")
    num_labels = envelope.get("num_labels") or (len(label2id) if isinstance(label2id, dict) else 0) or 2
    tensors = {}
    for index, source in sources.items():
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" in state:
                tensors[f"heads.{index}.{kind}"] = state[f"{source}.{kind}"]
    return HeadCheckpoint(name, canonical_head(config | {"num_labels": num_labels, "label2id": label2id}), tensors)


def _static_layout(model_class: str, model_type: str) -> tuple[dict[str, Any], dict[int, str]]:
    """Give the flexible configuration, and module index -> name in the classic class."""
    family = FAMILIES.get(model_type)
    task = model_class.removeprefix(family.static_class) if family else model_class
    if family and model_class.startswith(family.static_class):
        if task == "TokenClassification":
            return {"head_type": "tagging"}, {1: "classifier"}
        if task == "QuestionAnswering":
            return {"head_type": "question_answering"}, {1: "qa_outputs"}
        if task == "SequenceClassification" and model_type == "bert":
            return {"head_type": "classification", "layers": 1, "use_pooler": True}, {1: "classifier"}
        if task == "SequenceClassification":
            return {"head_type": "classification"}, {1: "classifier.dense", 4: "classifier.out_proj"}
    raise UnsupportedConfig(
        f"the head of model_class {model_class[:100]!r} is not supported; supported are SequenceClassification,"
        f" TokenClassification and QuestionAnswering of {', '.join(FAMILIES)}, and flexible heads",
        field="head_config.model_class",
        value=model_class[:100],
    )


def file_config(head: HeadCheckpoint) -> dict[str, Any]:
    """Give the `config` of a `head_config.json` that AdapterHub's library can load."""
    config = {key: value for key, value in head.config.items() if key != "labels"}
    if head.config["head_type"] in READS_TOKENS:
        del config["use_pooler"], config["bias"]  # the library's constructors do not take them here
    return config | {"dropout_prob": None, "label2id": {label: i for i, label in enumerate(head.config["labels"])}}


def head_file_keys(head: HeadCheckpoint) -> dict[str, Tensor]:
    return {f"heads.{head.name}.{key.removeprefix('heads.')}": tensor for key, tensor in head.tensors.items()}
