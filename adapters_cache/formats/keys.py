"""Tensor keys of AdapterHub files <-> canonical keys. Patterns are anchored: an adapter may be called "output"."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from adapters_cache.families import FAMILIES, Family
from server.errors import MalformedCheckpoint

_LEGACY = r"(?:attention|layer)_text_(?:task|lang)_adapters"
_MODEL_WIDE = (
    r"invertible_(?:lang_)?adapters",
    r"prefix_tuning\.prefix_tunings",
    r"prompt_tuning\.prompt_tunings",
    r"shared_parameters",
)
_POOL = ".prefix_tuning.pool."  # the whole prefix store once more, under every layer


def adapter_tensors(state: Mapping[str, Tensor], model_type: str, name: str) -> dict[str, Tensor]:
    """Strip model prefix and adapter name. Keys of another form stay as they are, for lowering to refuse."""
    family = FAMILIES.get(model_type)
    own = family and re.compile(rf"(?:{re.escape(family.prefix)})?{_place(family)}\.{re.escape(name)}\.(?P<rest>.+)")
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if _POOL in key:
            continue
        canonical = key
        if own and (match := own.fullmatch(key)):
            canonical = f"{_modern(match['place'])}.{match['rest']}"
        if canonical in result:
            raise MalformedCheckpoint(f"tensor {canonical} is there twice, as {key} too", tensor=key)
        result[canonical] = tensor
    return result


def file_keys(tensors: Mapping[str, Tensor], family: Family, name: str) -> dict[str, Tensor]:
    """The inverse of `adapter_tensors`."""
    own = re.compile(rf"{_place(family)}\.(?P<rest>.+)")
    result = {}
    for key, tensor in tensors.items():
        match = own.fullmatch(key)
        assert match, f"{key} is no canonical key"
        result[f"{family.file_prefix}{match['place']}.{name}.{match['rest']}"] = tensor
    return result


@lru_cache
def _place_of(layers: str, sites: tuple[str, ...], projections: tuple[str, ...], prefix_module: str | None) -> str:
    layer = layer_pattern(layers)
    below = [rf"(?:{_any(sites)})\.(?:adapters|{_LEGACY})", rf"(?:{_any(projections)})\.loras", r"reft_layer\.refts"]
    if prefix_module is not None:
        below.append(rf"{re.escape(prefix_module)}\.prefix_gates")
    return rf"(?P<place>{layer}\.(?:{'|'.join(below)})|{'|'.join(_MODEL_WIDE)})"


def _place(family: Family) -> str:
    """A pattern of everything in front of an adapter's name."""
    return _place_of(family.layers, (*family.sites.values(),), (*family.projections.values(),), family.prefix_module)


def layer_pattern(layers: str) -> str:
    return re.sub(r"\\\{\d\\\}", r"\\d+", re.escape(layers))


def _any(paths: Collection[str]) -> str:
    return "|".join(map(re.escape, paths))


def _modern(place: str) -> str:
    place = re.sub(rf"\.{_LEGACY}$", ".adapters", place)
    return "invertible_adapters" if place == "invertible_lang_adapters" else place


def drop_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave one key of each tensor that the library stores under two. Raises MalformedCheckpoint if they differ."""
    result = dict(tensors)
    for key in tensors:
        owner = _owner(key, tensors)
        if owner is None:
            continue
        tensor = result.pop(key)
        if owner not in result:
            result[owner] = tensor
        elif not _are_equal(tensor, result[owner]):
            raise MalformedCheckpoint(f"tensors {key} and {owner} are one tensor in the model but differ", tensor=key)
    return result


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """As far as can be told: on the meta device tensors have shapes only."""
    return one.shape == other.shape and (one.is_meta or other.is_meta or torch.equal(one, other))


def _owner(key: str, tensors: Mapping[str, Tensor]) -> str | None:
    if match := re.fullmatch(r"(.+\.)adapter_down\.0\.(weight|bias)", key):
        weight = tensors.get(f"{match[1]}adapter_down.0.weight")
        if weight is None or weight.ndim == 1:  # a LayerNorm's; a Linear's has two dimensions
            return f"{match[1]}adapter_norm_before.{match[2]}"
    if match := re.fullmatch(r"(.+\.)(?:adapter_down\.[12]|[FG]\.1)\.f\.weight", key):
        return f"{match[1]}non_linearity.f.weight"
    return None


def with_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `drop_aliases`: every key that the library expects."""
    result = dict(tensors)
    for key, tensor in tensors.items():
        if match := re.fullmatch(r"(.+\.)adapter_norm_before\.(weight|bias)", key):
            result[f"{match[1]}adapter_down.0.{match[2]}"] = tensor
        if key == "invertible_adapters.non_linearity.f.weight":
            del result[key]
            result |= {f"invertible_adapters.{network}.1.f.weight": tensor for network in ("F", "G")}
        elif match := re.fullmatch(r"(.+\.)non_linearity\.f\.weight", key):
            index = 2 if f"{match[1]}adapter_norm_before.weight" in tensors else 1
            result[f"{match[1]}adapter_down.{index}.f.weight"] = tensor
    return result


def without_layers(tensors: Mapping[str, Tensor], layers: Collection[int]) -> dict[str, Tensor]:
    """Drop the tensors of the given layers."""
    inner = [int(match[2] or 0) for key in tensors if (match := _LAYER.match(key))]
    per_group = max(inner, default=0) + 1
    return {key: tensor for key, tensor in tensors.items() if layer_of(key, per_group) not in layers}


# A layer's number, or group and number within it, in canonical keys of any family.
_LAYER = re.compile(
    r"(?:(?:encoder|transformer)\.layer|layers|encoder\.albert_layer_groups)\.(\d{1,9})\.(?:albert_layers\.(\d{1,9})\.)?"
)


def layer_of(key: str, per_group: int = 1) -> int | None:
    match = _LAYER.match(key)
    return int(match[1]) * per_group + int(match[2] or 0) if match else None
