"""Tensor keys of AdapterHub files <-> canonical keys. Patterns are anchored: an adapter may be called "output"."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from adapters_cache.families import FAMILIES
from server.errors import MalformedCheckpoint

_LEGACY = r"adapters|(?:attention|layer)_text_(?:task|lang)_adapters"


def adapter_tensors(state: Mapping[str, Tensor], model_type: str, name: str) -> dict[str, Tensor]:
    """Strip model prefix and adapter name. Keys of another form stay as they are, for lowering to refuse."""
    family = FAMILIES.get(model_type)
    prefix = f"(?:{re.escape(family.prefix)})?" if family else ""
    at = re.escape(name)
    site = re.compile(rf"{prefix}(encoder\.layer\.\d+\.(?:attention\.)?output)\.(?:{_LEGACY})\.{at}\.(.+)")
    invertible = re.compile(rf"{prefix}invertible_(?:lang_)?adapters\.{at}\.(.+)")
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        canonical = key
        if match := site.fullmatch(key):
            canonical = f"{match[1]}.adapters.{match[2]}"
        elif match := invertible.fullmatch(key):
            canonical = f"invertible_adapters.{match[1]}"
        if canonical in result:
            raise MalformedCheckpoint(f"tensor {canonical} is there twice, as {key} too", tensor=key)
        result[canonical] = tensor
    return result


def drop_aliases(tensors: Mapping[str, Tensor], *, ln_before: bool, prelu: bool) -> dict[str, Tensor]:
    """Leave one key of each tensor that the library stores under two. Raises MalformedCheckpoint if they differ."""
    result = dict(tensors)
    for key in tensors:
        owner = _owner(key, ln_before, prelu)
        if owner is None:
            continue
        tensor = result.pop(key)
        if owner not in result:
            result[owner] = tensor
        elif not (tensor.shape == result[owner].shape and torch.equal(tensor, result[owner])):
            raise MalformedCheckpoint(f"tensors {key} and {owner} are one tensor in the model but differ", tensor=key)
    return result


def _owner(key: str, ln_before: bool, prelu: bool) -> str | None:
    if ln_before and (match := re.fullmatch(r"(.+\.)adapter_down\.0\.(weight|bias)", key)):
        return f"{match[1]}adapter_norm_before.{match[2]}"
    index = 2 if ln_before else 1
    if prelu and (match := re.fullmatch(rf"(.+\.)adapter_down\.{index}\.f\.weight", key)):
        return f"{match[1]}non_linearity.f.weight"
    return None


def with_aliases(tensors: Mapping[str, Tensor], *, ln_before: bool, prelu: bool) -> dict[str, Tensor]:
    """The inverse of `drop_aliases`: every key that the library expects."""
    result = dict(tensors)
    index = 2 if ln_before else 1
    for key, tensor in tensors.items():
        if ln_before and (match := re.fullmatch(r"(.+\.)adapter_norm_before\.(weight|bias)", key)):
            result[f"{match[1]}adapter_down.0.{match[2]}"] = tensor
        if prelu and (match := re.fullmatch(r"(.+\.)non_linearity\.f\.weight", key)):
            result[f"{match[1]}adapter_down.{index}.f.weight"] = tensor
    return result


def without_layers(tensors: Mapping[str, Tensor], layers: Collection[int]) -> dict[str, Tensor]:
    """Drop the tensors of the given layers."""
    return {key: tensor for key, tensor in tensors.items() if layer_of(key) not in layers}


def layer_of(key: str) -> int | None:
    match = re.match(r"encoder\.layer\.(\d+)\.", key)
    return int(match[1]) if match else None


def file_keys(tensors: Mapping[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    """The inverse of `adapter_tensors`."""
    return {_file_key(key, prefix, name): tensor for key, tensor in tensors.items()}


def _file_key(key: str, prefix: str, name: str) -> str:
    site, parameter = re.split(r"(?<=adapters)\.", key, maxsplit=1)
    return f"{prefix}{site}.{name}.{parameter}"
