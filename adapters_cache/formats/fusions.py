"""AdapterFusion directories -> `Checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters_cache.families import FAMILIES, Family
from adapters_cache.formats import fields as f
from adapters_cache.formats.checkpoint import FUSION, Checkpoint
from adapters_cache.formats.fields import Field, canonical, refusal
from adapters_cache.formats.files import Envelope, Limits, read_tensors
from adapters_cache.formats.keys import layer_pattern
from server.primitives import SiteKind

FUSION_CONFIG = "adapter_fusion_config.json"
FUSION_FILES = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
FUSION_FIELDS: Mapping[str, Field] = {
    "query": Field(True, f.boolean),
    "key": Field(True, f.boolean),
    "value": Field(True, f.boolean),
    "query_before_ln": Field(False, f.boolean),
    "residual_before": Field(False, f.boolean),
    "value_before_softmax": Field(True, f.boolean),
    "temperature": Field(False, f.boolean),
}
TRAINING_ONLY = frozenset(("regularization", "value_initialized", "dropout_prob", "new_attention_norm", "config_id"))
# Of those, what AdapterHub's library asks for in a file.
TRAINING_DEFAULTS: Mapping[str, Any] = {"regularization": True, "value_initialized": True, "dropout_prob": None}
NAMED: Mapping[str, Mapping[str, Any]] = {"dynamic": {}, "static": {"value": False}}
_PARTS = r"(?P<part>(?:query|key|value|dense)\.(?:weight|bias))"


def is_fusion(path: Path) -> bool:
    return (path / FUSION_CONFIG).is_file()


def read_fusion(path: Path, limits: Limits | None = None) -> Checkpoint:
    """Read a fusion layer; its `config` has `members`, the names of the adapters it fuses.

    Reads files: not on the event loop. Raises MalformedCheckpoint, UnsupportedConfig.
    """
    envelope = Envelope.read(path / FUSION_CONFIG)
    config = fusion_config(envelope.values)
    state = read_tensors(path, FUSION_FILES, limits or Limits())
    tensors = fusion_tensors(state, envelope.model_type, envelope.name)
    return Checkpoint(
        envelope.name,
        envelope.model_type,
        envelope.hidden_size,
        config,
        tensors,
        base_fingerprint=envelope.base_fingerprint,
    )


def fusion_config(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """Give the canonical configuration, with `architecture` and `members`. Raises UnsupportedConfig."""
    raw = envelope.get("config")
    config = NAMED.get(raw) if isinstance(raw, str) else raw
    if not isinstance(config, Mapping):
        raise refusal("fusion_config.config", raw, f"an object or one of {', '.join(NAMED)}")
    known = {name: value for name, value in config.items() if name not in TRAINING_ONLY}
    if "version" not in envelope:
        known = {name: value for name, value in known.items() if name in FUSION_FIELDS}
    members = envelope.get("adapter_names")
    if members is None:  # files before 1.1 tell them only by the name
        members = str(envelope.get("name")).split(",")
    if not isinstance(members, list) or not members or not all(isinstance(name, str) and name for name in members):
        raise refusal("fusion_config.adapter_names", members, "a list of names")
    return canonical(FUSION_FIELDS, known, "fusion_config") | {"architecture": FUSION, "members": members}


def fusion_tensors(state: Mapping[str, Tensor], model_type: str, name: str) -> dict[str, Tensor]:
    """Strip model prefix and name. Tensors of fusions whose names only begin like it are left out."""
    family = FAMILIES.get(model_type)
    if family is None:
        return dict(state)
    site = rf"(?:{re.escape(family.prefix)})?(?P<site>{_site_pattern(family)}\.adapter_fusion_layer)\."
    own, any_name = re.compile(rf"{site}{re.escape(name)}\.{_PARTS}"), re.compile(rf"{site}.+\.{_PARTS}")
    result = {}
    for key, tensor in state.items():
        if match := own.fullmatch(key):
            result[f"{match['site']}.{match['part']}"] = tensor
        elif not any_name.fullmatch(key):
            result[key] = tensor  # for lowering to refuse
    return result


def fusion_file_keys(tensors: Mapping[str, Tensor], family: Family, name: str) -> dict[str, Tensor]:
    """The inverse of `fusion_tensors`."""
    mark = ".adapter_fusion_layer."
    return {f"{family.file_prefix}{key.replace(mark, f'{mark}{name}.')}": tensor for key, tensor in tensors.items()}


def sites_of(keys: Iterable[str], family: Family) -> list[SiteKind]:
    """The kinds of site that canonical keys name."""
    layer, found = layer_pattern(family.layers), list(keys)
    return [
        kind
        for kind, path in family.sites.items()
        if any(re.match(rf"{layer}\.{re.escape(path)}\.adapter_fusion_layer\.", key) for key in found)
    ]


def _site_pattern(family: Family) -> str:
    return rf"{layer_pattern(family.layers)}\.(?:{'|'.join(map(re.escape, family.sites.values()))})"
