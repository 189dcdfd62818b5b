"""The tensors that a configuration asks for, made on the spot: the lowering itself says which and of what shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from adapters_cache.draft import BaseWeights, Draft
from adapters_cache.flat import TensorSource
from adapters_cache.lowering import lower_members
from server.core import BaseInfo

Make = Callable[[str, tuple[int, ...]], Tensor]


def fresh_tensors(
    config: Mapping[str, Any], base: BaseInfo, weights: BaseWeights | None, make: Make
) -> dict[str, Tensor]:
    """Every tensor of an adapter with this canonical configuration, by canonical key.

    make   gives the tensor for a key and shape
    Raises UnsupportedConfig.
    """
    source = _NewTensors(make)
    lower_members(config, Draft(base, weights, source))
    return source.made


class _NewTensors(TensorSource):
    """Never lacks a tensor."""

    def __init__(self, make: Make) -> None:
        super().__init__({})
        self._make = make
        self.made: dict[str, Tensor] = {}

    def take(self, key: str, *shape: int) -> Tensor:
        self.made[key] = self._make(key, shape)
        return self.made[key]

    def share(self, name: str, *shape: int) -> Tensor:
        key = f"shared_parameters.{name}"
        return self.made[key] if key in self.made else self.take(key, *shape)
