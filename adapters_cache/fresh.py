"""The tensors that a configuration asks for, made on the spot: the lowering itself says which and of what shape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from adapters_cache.draft import BaseWeights, Draft
from adapters_cache.families import family_of
from adapters_cache.flat import TensorSource
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.lower_fusion import lower_fusion
from adapters_cache.lowering import lower, lower_members
from server.core import BaseInfo
from server.errors import UnsupportedConfig
from server.primitives import SiteKind

Make = Callable[[str, tuple[int, ...]], Tensor]


def fresh_tensors(
    config: Mapping[str, Any], base: BaseInfo, weights: BaseWeights | None, make: Make
) -> dict[str, Tensor]:
    """Every tensor of an adapter with this canonical configuration, by canonical key.

    make   gives the tensor for a key and shape
    Raises UnsupportedConfig.
    """
    source = FreshSource(make)
    lower_members(config, Draft(base, weights, source))
    return source.made


def fresh_fusion(
    config: Mapping[str, Any], base: BaseInfo, members: Sequence[Checkpoint], make: Make
) -> dict[str, Tensor]:
    """The same for a fusion: at every kind of site where a member has a bottleneck.

    Raises UnsupportedConfig where one of them has none.
    """
    kinds: set[SiteKind] = set()
    for member in members:
        own = {kind for _, kind in lower(member, base)[0].sites}
        if not own:
            raise UnsupportedConfig(
                f"adapter {member.name!r} of method {member.method} has no bottleneck to fuse", field="fuse"
            )
        kinds |= own
    family = family_of(base.model_type)
    layer = family.layer(0, base.layers_per_group)
    source = FreshSource(make, [f"{layer}.{family.sites[kind]}.adapter_fusion_layer." for kind in kinds])
    lower_fusion(config, Draft(base, None, source))
    return source.made


class FreshSource(TensorSource):
    """Never lacks a tensor. Those that were taken are in `made`.

    keys   what to say is there
    """

    def __init__(self, make: Make, keys: Collection[str] = ()) -> None:
        super().__init__({})
        self._make, self._keys = make, keys
        self.made: dict[str, Tensor] = {}

    def take(self, key: str, *shape: int) -> Tensor:
        self.made[key] = self._make(key, shape)
        return self.made[key]

    def share(self, name: str, *shape: int) -> Tensor:
        key = f"shared_parameters.{name}"
        return self.made[key] if key in self.made else self.take(key, *shape)

    def keys(self) -> Collection[str]:
        return self._keys
