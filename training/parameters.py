"""Fresh adapters and heads as trainable checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters_cache.families import family_of
from adapters_cache.formats.checkpoint import Checkpoint, HeadCheckpoint
from adapters_cache.formats.heads import canonical_head
from server.core import BaseInfo
from server.primitives import SiteKind

INIT_STD = 0.02  # of every new matrix, as in BERT


def new_checkpoint(
    name: str, base: BaseInfo, config: Mapping[str, Any] | None, head: HeadCheckpoint | None, seed: int
) -> Checkpoint:
    """An untrained bottleneck adapter whose tensors require gradients.

    config   canonical configuration (`adapters_cache.formats`), None for a head alone
    head     from `new_head`
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = _bottlenecks(base, config, generator) if config else {}
    for tensor in tensors.values():
        tensor.requires_grad_()
    return Checkpoint(name, base.model_type, base.hidden_size, config, tensors, head, base.fingerprint)


def new_head(
    name: str, base: BaseInfo, head_type: str, labels: tuple[str, ...], seed: int, *, layers: int = 1
) -> HeadCheckpoint:
    """An untrained head: `layers` Linears with tanh between them."""
    generator = torch.Generator().manual_seed(seed)
    width, tensors = base.hidden_size, {}
    for i in range(layers):
        out = len(labels) if i == layers - 1 else width
        index = 1 + 3 * i  # every Linear has a dropout before it and an activation behind
        tensors[f"heads.{index}.weight"] = _normal((out, width), generator).requires_grad_()
        tensors[f"heads.{index}.bias"] = torch.zeros(out, requires_grad=True)
    label2id = {label: index for index, label in enumerate(labels)}
    config = canonical_head({"head_type": head_type, "num_labels": len(labels), "layers": layers, "label2id": label2id})
    return HeadCheckpoint(name, config, tensors)


def _bottlenecks(base: BaseInfo, config: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    family, hidden, tensors = family_of(base.model_type), base.hidden_size, {}
    width = max(1, int(hidden // config["reduction_factor"]))
    kinds = [(SiteKind.ATTENTION, config["mh_adapter"]), (SiteKind.OUTPUT, config["output_adapter"])]
    for layer in range(base.num_layers):
        for kind in (kind for kind, is_present in kinds if is_present and layer not in config["leave_out"]):
            path = family.site(layer, kind)
            tensors[f"{path}.adapter_down.0.weight"] = _down(width, hidden, config, generator)
            tensors[f"{path}.adapter_down.0.bias"] = torch.zeros(width)
            tensors[f"{path}.adapter_up.weight"] = _up(width, hidden, config, generator)
            tensors[f"{path}.adapter_up.bias"] = torch.zeros(hidden)
            if config["scaling"] == "learned":
                tensors[f"{path}.scaling"] = torch.ones(1)
    return tensors


def _down(width: int, hidden: int, config: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    if not config["is_parallel"]:
        return _normal((width, hidden), generator)
    bound = math.sqrt(1 / hidden)  # Kaiming uniform with a = sqrt(5), as He et al. 2021 do
    return torch.empty(width, hidden).uniform_(-bound, bound, generator=generator)


def _up(width: int, hidden: int, config: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    if config["is_parallel"]:
        return torch.zeros(hidden, width)
    return _normal((hidden, width), generator)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, INIT_STD, generator=generator)
