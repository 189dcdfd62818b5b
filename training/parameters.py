"""Fresh adapters, fusions and heads as trainable checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters_cache.draft import BaseWeights
from adapters_cache.flat import FlatBuilder
from adapters_cache.formats.checkpoint import FUSION, Checkpoint, HeadCheckpoint
from adapters_cache.formats.fusions import fusion_config
from adapters_cache.formats.heads import LANGUAGE_MODELS, canonical_head
from adapters_cache.fresh import FreshSource, fresh_fusion, fresh_tensors
from adapters_cache.lower_head import take_head
from server.core import BaseInfo
from server.errors import UnsupportedConfig

INIT_STD = 0.02  # of every new matrix, as in BERT
Make = Callable[[str, tuple[int, ...]], Tensor]


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
    return _checkpoint(name, base, config, tensors, head)


def new_fusion(
    name: str,
    base: BaseInfo,
    members: Sequence[Checkpoint],
    head: HeadCheckpoint | None,
    seed: int,
    config: str | Mapping[str, Any] = "dynamic",
) -> Checkpoint:
    """An untrained AdapterFusion (Pfeiffer et al. 2021, arXiv:2005.00247) over adapters with bottlenecks.

    config   "dynamic", "static" (without values), or an object with the library's fields
    Raises UnsupportedConfig where a member has no bottleneck.
    """
    own = fusion_config({"config": config, "adapter_names": [m.name for m in members], "version": ""})
    tensors = fresh_fusion(own, base, members, _Init(own, torch.Generator().manual_seed(seed)))
    return _checkpoint(name, base, own, tensors, head)


def new_head(
    name: str,
    base: BaseInfo,
    head_type: str,
    labels: Sequence[str],
    seed: int,
    *,
    layers: int = 1,
    options: Mapping[str, Any] | None = None,
    weights: BaseWeights | None = None,
) -> HeadCheckpoint:
    """An untrained head. A language model's decoder is the base's embedding matrix, which stays as it is.

    head_type  one of `adapters_cache.formats.heads.HEAD_TYPES`
    layers     Linears, with tanh between them; language models always have the library's two
    options    further fields of the library's head configuration
    weights    the base's own, for language models
    Raises UnsupportedConfig for a field or value that no head of this type has.
    """
    config: dict[str, Any] = {"head_type": head_type, **(options or {})}
    if head_type not in LANGUAGE_MODELS | {"dependency_parsing"}:
        config.setdefault("layers", layers)
    if labels:
        config |= {"num_labels": len(labels), "label2id": {label: index for index, label in enumerate(labels)}}
    own = canonical_head(config)
    init = _Init({}, torch.Generator().manual_seed(seed))
    source = FreshSource(init)
    take_head(name, own, base, source, FlatBuilder())
    tensors = {key: tensor.requires_grad_() for key, tensor in source.made.items()}
    if head_type in LANGUAGE_MODELS:
        tensors = _tied(tensors, weights)
    return HeadCheckpoint(name, own, tensors)


def _tied(tensors: dict[str, Tensor], weights: BaseWeights | None) -> dict[str, Tensor]:
    """The decoder's matrix is the last one."""
    embeddings = weights.input_embeddings() if weights is not None else None
    decoder = [key for key, tensor in tensors.items() if tensor.ndim == 2][-1]
    if embeddings is None or tensors[decoder].shape != embeddings.shape:
        raise UnsupportedConfig("a language model's head is trained with the base's own vocabulary and embedding size")
    return {**tensors, decoder: embeddings.detach()}


def _checkpoint(
    name: str,
    base: BaseInfo,
    config: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
    head: HeadCheckpoint | None,
) -> Checkpoint:
    for tensor in tensors.values():
        tensor.requires_grad_()
    return Checkpoint(name, base.model_type, base.hidden_size, config, tensors, head, base.fingerprint)


class _Init:
    """How each tensor of an untrained adapter starts, by its key.

    Most adapters begin as the identity or close to it: the matrix that writes is zero for parallel adapters and
    low-rank deltas (He et al. 2021, Hu et al. 2021), tiny for others, scales and norms are one. A fusion passes on
    what its members give.
    """

    def __init__(self, config: Mapping[str, Any], generator: torch.Generator) -> None:
        self._starts_at_zero = bool(config.get("is_parallel"))
        self._is_scale = config.get("composition_mode") == "scale"
        self._is_fusion = config.get("architecture") == FUSION
        self._generator = generator

    def __call__(self, key: str, shape: tuple[int, ...]) -> Tensor:
        name = key.rpartition(".")[2]
        if self._is_fusion and key.endswith("value.weight"):
            return torch.eye(*shape)
        if key.endswith("parametrizations.weight.original"):
            return self._orthogonal(shape)
        if key.endswith("lora_A") or (self._starts_at_zero and "adapter_down" in key and name == "weight"):
            return self._kaiming(shape)
        if key.endswith("lora_B"):
            return torch.ones(shape) if self._is_scale else torch.zeros(shape)
        if self._starts_at_zero and key.endswith("adapter_up.weight"):
            return torch.zeros(shape)
        is_norm = name == "weight" and ("norm" in key or (key.startswith("heads.") and len(shape) == 1))
        if name in ("scaling", "values", "weights", "vera_D", "vera_B") or is_norm:
            return torch.ones(shape)
        if name in ("bias", "b"):
            return torch.zeros(shape)
        if name == "base":
            return torch.eye(*shape)
        return torch.empty(shape).normal_(0.0, INIT_STD, generator=self._generator)

    def _orthogonal(self, shape: tuple[int, ...]) -> Tensor:
        """Householder vectors of a random projection, as torch's parametrisation keeps them: signs on the diagonal."""
        vectors = torch.empty(shape).normal_(0.0, shape[-1] ** -0.5, generator=self._generator)
        vectors.diagonal().fill_(1.0)
        return vectors

    def _kaiming(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform with a = sqrt(5)."""
        bound = math.sqrt(1 / shape[-1])
        return torch.empty(shape).uniform_(-bound, bound, generator=self._generator)
