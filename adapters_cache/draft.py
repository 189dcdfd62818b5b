"""An adapter while it is being lowered: what every method reads from and writes to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

from adapters_cache.families import Family, family_of
from adapters_cache.flat import FlatBuilder, TensorSource
from server.core import BaseInfo
from server.errors import Internal, UnsupportedConfig
from server.primitives import AdapterSpec, Affine, Bottleneck, Coupling, Delta, Edits, Prefix, Projection, Prompt
from server.primitives import SiteKind as Kind

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
EMBEDDINGS = "embeddings"


class BaseWeights(Protocol):
    """The base's own weights, for the few methods whose lowering needs them."""

    def projection_weight(self, layer: int, projection: Projection) -> Tensor:
        """[out, in]"""
        ...

    def projection_bias(self, layer: int, projection: Projection) -> Tensor | None:
        """[out], None where the Linear has none"""
        ...

    def input_embeddings(self) -> Tensor:
        """[vocab, E]"""
        ...


class Draft:
    """Collects the parts of an `AdapterSpec`. Members of a union write to one draft; no place is taken twice."""

    def __init__(self, base: BaseInfo, weights: BaseWeights | None, source: TensorSource) -> None:
        self.base = base
        self.family: Family = family_of(base.model_type)
        self.source = source
        self.flat = FlatBuilder()
        self._weights = weights
        self.sites: dict[tuple[int, Kind], Bottleneck] = {}
        self.projections: dict[tuple[int, Projection], Delta] = {}
        self.prefixes: dict[int, Prefix] = {}
        self.edits: dict[int, Edits] = {}
        self.couplings: dict[str, Coupling] = {}  # at most one of these, by EMBEDDINGS
        self.prompts: dict[str, Prompt] = {}

    @property
    def embedding_size(self) -> int:
        return self.base.embedding_size or self.base.hidden_size

    @property
    def base_weights(self) -> BaseWeights:
        """Raises Internal where the caller gave none."""
        if self._weights is None:
            raise Internal("this adapter is lowered with the base's weights, and none were given")
        return self._weights

    def layer(self, number: int) -> str:
        return self.family.layer(number, self.base.layers_per_group)

    def affine(self, path: str, *shape: int) -> Affine:
        """Take weight, of `shape`, and bias of a Linear or LayerNorm and lay them out."""
        weight = self.source.take(f"{path}.weight", *shape)
        return Affine(self.flat.add(weight), self.flat.add(self.source.take(f"{path}.bias", shape[0])))

    def set_prompt(self, prompt: Prompt) -> None:
        self.put(self.prompts, EMBEDDINGS, prompt, "the prompt")

    @classmethod
    def put(cls, places: dict[K, V], place: K, value: V, what: str) -> None:
        """Raises UnsupportedConfig if another member of a union is there already."""
        cls.check_free(places, place, what)
        places[place] = value

    @staticmethod
    def check_free(places: Mapping[K, object], place: K, what: str) -> None:
        """Raises UnsupportedConfig where `put` would. Before tensors are taken: the other member has taken them."""
        if place in places:
            raise UnsupportedConfig(
                f"two members of the union both want {what}; give them different sites or leave_out",
                field="config.configs",
                value=what,
            )

    def spec(self, **rest: Any) -> AdapterSpec:
        return AdapterSpec(
            sites=self.sites,
            projections=self.projections,
            prefixes=self.prefixes,
            edits=self.edits,
            coupling=self.couplings.get(EMBEDDINGS),
            prompt=self.prompts.get(EMBEDDINGS),
            num_elements=self.flat.num_elements,
            **rest,
        )
