"""Configuration fields that a file may hold wrong, taken from its tensors.

AdapterHub keeps one configuration for adapters that differ only in some fields of parameterised hypercomplex layers: a
model that held two of them may have saved one with the configuration of the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters_cache.formats.checkpoint import UNION

_MODULE = r".+\.adapters\.adapter_down\.[01]\."
_SHARED = r"shared_parameters\."


def settled(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give the configuration with those fields as the tensors say. Unions are taken at their word."""
    result = dict(config)
    if result.get("architecture") == UNION or "phm_layer" not in result:
        return result
    factor = _find(tensors, rf"{_MODULE}W_left|{_SHARED}W_down_left")
    whole = _find(tensors, rf"{_MODULE}W")
    if factor is None and whole is None:
        if result["phm_layer"] and _find(tensors, rf"{_MODULE}weight") is not None:
            result["phm_layer"] = False
        return result
    result["phm_layer"] = True
    result["factorized_phm_W"] = factor is not None
    result["shared_W_phm"] = _find(tensors, rf"{_SHARED}W_down_left") is not None
    result["phm_dim"] = _size(factor if factor is not None else whole, 0, result["phm_dim"])
    result["phm_rank"] = _size(factor, 2, result["phm_rank"])
    result["phm_bias"] = _find(tensors, rf"{_MODULE}b") is not None
    # whether the rule is shared shows in who has one of their own; a file without any lacks the shared one
    result["shared_phm_rule"] = _find(tensors, rf"{_MODULE}phm_rule(?:_left)?") is None
    if _find(tensors, r".+\.phm_rule(?:_left)?") is not None:
        result["factorized_phm_rule"] = _find(tensors, r".+\.phm_rule_left") is not None
    return result


def _find(tensors: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    return next((tensor for key, tensor in tensors.items() if re.fullmatch(pattern, key)), None)


def _size(tensor: Tensor | None, axis: int, otherwise: int) -> int:
    return int(tensor.shape[axis]) if tensor is not None and tensor.ndim > axis and tensor.shape[axis] else otherwise
