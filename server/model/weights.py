"""An adapter's primitives as views into its flat buffer. Gradients flow through the views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from server.primitives import (
    AdapterSpec,
    Affine,
    Bottleneck,
    BottleneckStyle,
    Coupling,
    Delta,
    Edit,
    Edits,
    Fusion,
    Head,
    Prefix,
    Projection,
    Prompt,
    SiteKind,
    TensorSlice,
)

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class AffineWeights:
    """weight [out, in] and bias [out] of a Linear, or [H] and [H] of a LayerNorm."""

    weight: Tensor
    bias: Tensor | None

    @property
    def transposed(self) -> Tensor:
        """[in, out]"""
        return self.weight.t()


@dataclass(frozen=True, slots=True, eq=False)
class BottleneckWeights:
    """down [R, H], up [H, R]."""

    style: BottleneckStyle
    activation: Activation
    down: AffineWeights
    up: AffineWeights
    norm_before: AffineWeights | None
    norm_after: AffineWeights | None
    gate: AffineWeights | None


@dataclass(frozen=True, slots=True, eq=False)
class DeltaWeights:
    """down [R, in], up [out, R], channel [out], gate [G, in]."""

    down: Tensor | None
    up: Tensor | None
    channel: Tensor | None
    gate: AffineWeights | None
    is_scale: bool
    bias: Tensor | None = None
    input_scale: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PrefixWeights:
    """keys, values [P, H]; gate [1 or 2, H]."""

    keys: Tensor
    values: Tensor
    gate: AffineWeights | None


@dataclass(frozen=True, slots=True, eq=False)
class PromptWeights:
    """embeddings [P, E]."""

    prompt: Prompt
    embeddings: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class CouplingWeights:
    """f: [E - E // 2] -> [E // 2] and g the other way round, two Linears each."""

    activation: Activation
    f: tuple[AffineWeights, AffineWeights]
    g: tuple[AffineWeights, AffineWeights]


@dataclass(frozen=True, slots=True, eq=False)
class EditWeights:
    """source [R, H], projection [R, H]."""

    source: AffineWeights
    projection: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class EditsWeights:
    edits: Edits
    activation: Activation | None
    first: EditWeights | None
    last: EditWeights | None


@dataclass(frozen=True, slots=True, eq=False)
class FusionWeights:
    """query, key, value [H, H] of one site, each None where the fusion has none."""

    fusion: Fusion
    query: AffineWeights | None
    key: AffineWeights | None
    value: AffineWeights | None


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A head's Linears, each with its activation and LayerNorm; arcs and relations of a parser."""

    head: Head
    layers: tuple[tuple[AffineWeights, Activation | None, AffineWeights | None], ...]
    arcs: Tensor | None
    relations: Tensor | None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class SlotWeights:
    """Everything a slot holds. Slots of equal `order` lie next to each other in a batch."""

    sites: Mapping[tuple[int, SiteKind], BottleneckWeights]
    projections: Mapping[tuple[int, Projection], DeltaWeights]
    prefixes: Mapping[int, PrefixWeights]
    edits: Mapping[int, EditsWeights]
    fusions: Mapping[tuple[int, SiteKind], FusionWeights]
    prompt: PromptWeights | None
    coupling: CouplingWeights | None
    heads: tuple[HeadWeights, ...]
    order: int
    position_offset: int = 0


def view(spec: AdapterSpec, flat: Tensor | Mapping[int, Tensor], order: int = 0) -> SlotWeights:
    """The tensors of `spec` as views into `flat` [num_elements], or into those that it holds by their offsets."""
    make = _Views(flat)
    return SlotWeights(
        sites={site: make.bottleneck(bottleneck) for site, bottleneck in spec.sites.items()},
        projections={at: make.delta(delta) for at, delta in spec.projections.items()},
        prefixes={layer: make.prefix(prefix) for layer, prefix in spec.prefixes.items()},
        edits={layer: make.edits(edits) for layer, edits in spec.edits.items()},
        fusions=make.fusions(spec.fusion) if spec.fusion else {},
        prompt=PromptWeights(spec.prompt, make.take(spec.prompt.embeddings)) if spec.prompt else None,
        coupling=make.coupling(spec.coupling) if spec.coupling else None,
        heads=tuple(make.head(head) for head in spec.all_heads),
        order=order,
        position_offset=spec.position_offset,
    )


class _Views:
    """Takes tensors out of one flat buffer, or out of its parts."""

    def __init__(self, flat: Tensor | Mapping[int, Tensor]) -> None:
        self._flat = flat

    @overload
    def take(self, where: TensorSlice) -> Tensor: ...
    @overload
    def take(self, where: TensorSlice | None) -> Tensor | None: ...
    def take(self, where: TensorSlice | None) -> Tensor | None:
        if where is None:
            return None
        if isinstance(self._flat, Tensor):
            return self._flat[where.offset : where.offset + where.num_elements].view(where.shape)
        return self._flat[where.offset].reshape(where.shape) if where.num_elements else torch.empty(where.shape)

    @overload
    def affine(self, affine: Affine) -> AffineWeights: ...
    @overload
    def affine(self, affine: Affine | None) -> AffineWeights | None: ...
    def affine(self, affine: Affine | None) -> AffineWeights | None:
        return None if affine is None else AffineWeights(self.take(affine.weight), self.take(affine.bias))

    def bottleneck(self, spec: Bottleneck) -> BottleneckWeights:
        return BottleneckWeights(
            style=spec.style,
            activation=activation(spec.style.activation, self.take(spec.activation_weight)),
            down=self.affine(spec.down),
            up=self.affine(spec.up),
            norm_before=self.affine(spec.norm_before),
            norm_after=self.affine(spec.norm_after),
            gate=self.affine(spec.gate),
        )

    def delta(self, spec: Delta) -> DeltaWeights:
        down, up, channel = (self.take(where) for where in (spec.down, spec.up, spec.channel))
        bias, input_scale = self.take(spec.bias), self.take(spec.input_scale)
        return DeltaWeights(down, up, channel, self.affine(spec.gate), spec.is_scale, bias, input_scale)

    def prefix(self, spec: Prefix) -> PrefixWeights:
        return PrefixWeights(self.take(spec.keys), self.take(spec.values), self.affine(spec.gate))

    def coupling(self, spec: Coupling) -> CouplingWeights:
        f1, f2, g1, g2 = (self.affine(affine) for affine in (*spec.f, *spec.g))
        return CouplingWeights(activation(spec.activation, self.take(spec.activation_weight)), (f1, f2), (g1, g2))

    def edits(self, spec: Edits) -> EditsWeights:
        act = activation(spec.activation) if spec.activation else None
        return EditsWeights(spec, act, self._edit(spec.first), self._edit(spec.last))

    def _edit(self, spec: Edit | None) -> EditWeights | None:
        return None if spec is None else EditWeights(self.affine(spec.source), self.take(spec.projection))

    def fusions(self, spec: Fusion) -> dict[tuple[int, SiteKind], FusionWeights]:
        return {
            at: FusionWeights(spec, self.affine(site.query), self.affine(site.key), self.affine(site.value))
            for at, site in spec.sites.items()
        }

    def head(self, spec: Head) -> HeadWeights:
        layers = tuple(
            (self.affine(x.dense), activation(x.activation) if x.activation else None, self.affine(x.norm))
            for x in spec.layers
        )
        arcs = self.take(spec.biaffine.arcs) if spec.biaffine else None
        return HeadWeights(spec, layers, arcs, self.take(spec.biaffine.relations) if spec.biaffine else None)


def activation(name: str, slope: Tensor | None = None) -> Activation:
    """The activation a checkpoint names; `slope` is the learned weight of prelu, [1]."""
    if name == "prelu":
        assert slope is not None
        return lambda x: torch.nn.functional.prelu(x, slope)
    if name == "relu":
        return torch.relu
    return ACT2FN["leaky_relu" if name == "leakyrelu" else name]  # type: ignore[no-any-return]
