"""Lowered adapters taken apart again, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from make_adapters import RandomWeights, random_checkpoint
from torch import Tensor

from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.lowering import lower
from server.core import BaseInfo
from server.primitives import AdapterSpec, Affine, Delta, TensorSlice


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    checkpoint: Checkpoint
    spec: AdapterSpec
    flat: Tensor

    def take(self, place: TensorSlice | None) -> Tensor:
        assert place is not None
        return self.flat[place.offset : place.offset + place.num_elements].view(place.shape)

    def linear(self, affine: Affine | None, x: Tensor) -> Tensor:
        assert affine is not None
        y = x @ self.take(affine.weight).t()
        return y if affine.bias is None else y + self.take(affine.bias)

    def delta(self, delta: Delta, x: Tensor, y: Tensor) -> Tensor:
        """What the primitive says: channel * (y + gate * up (down x)), for one sample [T, in] -> [T, out]."""
        gate = self.linear(delta.gate, x).sigmoid().mean(0) if delta.gate else torch.ones(1)
        scale = gate.repeat_interleave(y.shape[1] // len(gate)) if delta.is_scale else torch.ones(1)
        if delta.down is not None:
            ranks = x @ self.take(delta.down).t()
            y = y + (ranks * gate.repeat_interleave(ranks.shape[1] // len(gate))) @ self.take(delta.up).t()
        return y if delta.channel is None else y * self.take(delta.channel) * scale

    def __getitem__(self, key: str) -> Tensor:
        return self.checkpoint.tensors[key]


def lowered(base: BaseInfo, config: str | Mapping[str, Any] | None, *, seed: int = 0, **options: Any) -> Lowered:
    return lowered_from(random_checkpoint(base, config=config, seed=seed, **options), base)


def lowered_from(checkpoint: Checkpoint, base: BaseInfo) -> Lowered:
    spec, tensors = lower(checkpoint, base, RandomWeights(base))
    return Lowered(checkpoint, spec, torch.cat([torch.empty(0), *(tensor.reshape(-1) for tensor in tensors)]))
