"""Fresh adapters and heads as trainable checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters_cache.draft import BaseWeights
from adapters_cache.formats.checkpoint import Checkpoint, HeadCheckpoint
from adapters_cache.formats.heads import canonical_head
from adapters_cache.fresh import fresh_tensors
from server.core import BaseInfo

INIT_STD = 0.02  # of every new matrix, as in BERT


def new_checkpoint(
    name: str,
    base: BaseInfo,
    config: Mapping[str, Any] | None,
    head: HeadCheckpoint | None,
    seed: int,
    weights: BaseWeights | None = None,
) -> Checkpoint:
    """An untrained adapter of any method; its tensors require gradients.

    config    canonical configuration (`adapters_cache.formats`), None for a head alone
    head      from `new_head`
    weights   the base's own, for methods that start from them
    """
    init = _Init(config or {}, torch.Generator().manual_seed(seed))
    tensors = fresh_tensors(config, base, weights, init) if config is not None else {}
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


class _Init:
    """How each tensor of an untrained adapter starts, by its key.

    Most adapters begin as the identity or close to it: the matrix that writes is zero for parallel adapters and
    low-rank deltas (He et al. 2021, Hu et al. 2021), tiny for others, scales and norms are one.
    """

    def __init__(self, config: Mapping[str, Any], generator: torch.Generator) -> None:
        self._starts_at_zero = bool(config.get("is_parallel"))
        self._is_scale = config.get("composition_mode") == "scale"
        self._generator = generator

    def __call__(self, key: str, shape: tuple[int, ...]) -> Tensor:
        name = key.rpartition(".")[2]
        if key.endswith("lora_A") or (self._starts_at_zero and "adapter_down" in key and name == "weight"):
            return self._kaiming(shape)
        if key.endswith("lora_B"):
            return torch.ones(shape) if self._is_scale else torch.zeros(shape)
        if self._starts_at_zero and key.endswith("adapter_up.weight"):
            return torch.zeros(shape)
        if name in ("scaling", "values", "weights", "vera_D", "vera_B") or ("norm" in key and name == "weight"):
            return torch.ones(shape)
        if name in ("bias", "b"):
            return torch.zeros(shape)
        if name == "base":
            return torch.eye(*shape)
        return torch.empty(shape).normal_(0.0, INIT_STD, generator=self._generator)

    def _kaiming(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform with a = sqrt(5)."""
        bound = math.sqrt(1 / shape[-1])
        return torch.empty(shape).uniform_(-bound, bound, generator=self._generator)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, INIT_STD, generator=generator)
