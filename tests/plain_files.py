"""Reads AdapterHub checkpoints for `plain`, by its own means: nothing here comes from the packages under test.

Tensors are float64, under their keys without the model's prefix.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]
Config = Mapping[str, Any]

MODEL_PREFIXES = ("bert.", "roberta.")
RENAMED = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}
SEQ_BN = {
    "mh_adapter": False,
    "output_adapter": True,
    "non_linearity": "relu",
    "original_ln_before": True,
}
DOUBLE_SEQ_BN = SEQ_BN | {"mh_adapter": True, "non_linearity": "swish", "original_ln_before": False}
NAMED = {"pfeiffer": SEQ_BN, "seq_bn": SEQ_BN, "houlsby": DOUBLE_SEQ_BN, "double_seq_bn": DOUBLE_SEQ_BN}
FUSIONS = {
    "static": {"query": True, "key": True, "value": False},
    "dynamic": {"query": True, "key": True, "value": True},
}


@dataclass(frozen=True)
class HeadLayer:
    weight: Tensor
    bias: Tensor | None
    activation: str | None
    norm: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Head:
    kind: str
    layers: Sequence[HeadLayer]
    use_pooler: bool
    tensors: State


@dataclass(frozen=True)
class Adapter:
    """`name` is the one inside the tensor keys; `members` are the configurations of a union, or the only one."""

    name: str
    members: Sequence[Config]
    tensors: State
    head: Head | None = None


@dataclass(frozen=True)
class Fusion:
    name: str
    config: Config
    tensors: State


@dataclass(frozen=True)
class Base:
    config: Config
    tensors: State


def read_base(path: Path) -> Base:
    return Base(json.loads((path / "config.json").read_text()), read_tensors(path, "model", ""))


def read_tensors(path: Path, stem: str, pickled: str) -> State:
    safe = path / f"{stem}.safetensors"
    raw = load_file(safe) if safe.exists() else torch.load(path / f"{pickled}.bin", weights_only=True)
    state: State = {}
    for key, value in raw.items():
        for old, new in RENAMED.items():
            key = key.replace(old, new)
        for prefix in MODEL_PREFIXES:
            key = key.removeprefix(prefix)
        state[key] = value.double()
    return state


def read_adapter(path: Path, leave_out: Collection[int] = ()) -> Adapter:
    """An adapter's folder with the head beside it, or a folder that holds a head alone."""
    head = _read_head(path) if (path / "head_config.json").exists() else None
    if not (path / "adapter_config.json").exists():
        return Adapter("", (), {}, head)
    envelope = json.loads((path / "adapter_config.json").read_text())
    tensors = read_tensors(path, "adapter", "pytorch_adapter")
    config = envelope["config"]
    if isinstance(config, str):
        config = NAMED[config]
    members = [dict(member) for member in config.get("configs", [config])]
    for member in members:
        _migrate(member, envelope, tensors)
        member["leave_out"] = {*(member.get("leave_out") or ()), *leave_out}
    return Adapter(envelope["name"], members, tensors, head)


def _migrate(config: dict[str, Any], envelope: Config, tensors: State) -> None:
    version = envelope.get("version")
    if version is None and "non_linearity" in config:
        config["non_linearity"] = {"gelu": "gelu_new", "gelu_orig": "gelu"}.get(
            config["non_linearity"], config["non_linearity"]
        )
    is_old = version is not None and version.startswith("adapters.") and _numbers(version) < (1, 1)
    if is_old and envelope["config"].get("architecture") == "lora":
        config["alpha"] = config["r"]
    nested = config.pop("invertible_adapter", None)
    if nested:
        config["inv_adapter"] = nested["block_type"]
    if envelope.get("type") == "text_task" and not any(key.startswith("invertible_adapters.") for key in tensors):
        config["inv_adapter"] = None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.removeprefix("adapters.").split(".")[:2])


def read_fusion(path: Path) -> Fusion:
    envelope = json.loads((path / "adapter_fusion_config.json").read_text())
    config = envelope["config"]
    config = FUSIONS[config] if isinstance(config, str) else config
    tensors = read_tensors(path, "model_adapter_fusion", "pytorch_model_adapter_fusion")
    return Fusion(envelope.get("name") or ",".join(envelope["adapter_names"]), config, tensors)


HEAD_DEFAULTS: Mapping[str, Config] = {
    "classification": {"layers": 2},
    "multilabel_classification": {"layers": 2},
    "multiple_choice": {"layers": 2},
    "tagging": {"layers": 1},
    "question_answering": {"layers": 1},
    "masked_lm": {"layers": 2, "activation_function": "gelu", "layer_norm": True},
    "causal_lm": {"layers": 2, "activation_function": "gelu", "layer_norm": True},
}
LANGUAGE_MODELS = ("masked_lm", "causal_lm")
# class ending -> (kind, activation, whether it reads the pooler, the tensors of each layer, LayerNorm behind the first)
STATIC: Mapping[str, tuple[str, str | None, bool, tuple[str, ...], str | None]] = {
    "BertForSequenceClassification": ("classification", None, True, ("classifier",), None),
    "RobertaForSequenceClassification": (
        "classification",
        "tanh",
        False,
        ("classifier.dense", "classifier.out_proj"),
        None,
    ),
    "ForTokenClassification": ("tagging", None, False, ("classifier",), None),
    "ForQuestionAnswering": ("question_answering", None, False, ("qa_outputs",), None),
    "ForMultipleChoice": ("multiple_choice", None, True, ("classifier",), None),
    "BertForMaskedLM": (
        "masked_lm",
        "gelu",
        False,
        ("cls.predictions.transform.dense", "cls.predictions.decoder"),
        "cls.predictions.transform.LayerNorm",
    ),
    "RobertaForMaskedLM": ("masked_lm", "gelu", False, ("lm_head.dense", "lm_head.decoder"), "lm_head.layer_norm"),
}


def _read_head(path: Path) -> Head:
    envelope = json.loads((path / "head_config.json").read_text())
    tensors = read_tensors(path, "model_head", "pytorch_model_head")
    if envelope["config"] is None:
        return _static_head(envelope["model_class"], tensors)
    kind = envelope["config"]["head_type"]
    config = {"activation_function": "tanh"} | dict(HEAD_DEFAULTS.get(kind, {})) | envelope["config"]
    start = f"heads.{envelope['name']}."
    own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    if kind == "dependency_parsing":
        return Head(kind, (), False, own)
    layers = _lm_layers(config, own) if kind in LANGUAGE_MODELS else _dense_layers(config, own)
    return Head(kind, layers, bool(config.get("use_pooler")), own)


def _dense_layers(config: Config, own: State) -> list[HeadLayer]:
    step, activation = 3 if config["activation_function"] else 2, config["activation_function"]
    places = [1 + step * i for i in range(config["layers"])]
    return [
        HeadLayer(own[f"{at}.weight"], own.get(f"{at}.bias"), activation if at != places[-1] else None) for at in places
    ]


def _lm_layers(config: Config, own: State) -> list[HeadLayer]:
    layers, at = [], 0
    for _ in range(config["layers"] - 1):
        dense, at = at, at + 1
        at += bool(config["activation_function"])
        norm = None
        if config["layer_norm"]:
            norm, at = (own[f"{at}.weight"], own[f"{at}.bias"]), at + 1
        layers.append(HeadLayer(own[f"{dense}.weight"], own[f"{dense}.bias"], config["activation_function"], norm))
    return [*layers, HeadLayer(own[f"{at}.weight"], own.get(f"{at}.bias"), None)]


def _static_head(model_class: str, tensors: State) -> Head:
    found = next(row for ending, row in STATIC.items() if model_class.endswith(ending))
    kind, activation, use_pooler, paths, norm = found
    layers = []
    for i, path in enumerate(paths):
        is_last = i == len(paths) - 1
        own_norm = (tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]) if norm and not is_last else None
        weight, bias = tensors[f"{path}.weight"], tensors.get(f"{path}.bias")
        layers.append(HeadLayer(weight, bias, None if is_last else activation, own_norm))
    return Head(kind, layers, use_pooler, tensors)
