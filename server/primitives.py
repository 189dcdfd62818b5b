"""What every adapter is lowered to: plain descriptions, no tensors.

`adapters_cache.lowering` makes them from a checkpoint, `server.model` runs them. The weights themselves are one flat
buffer per adapter; a `TensorSlice` says where in it a tensor lies. Issue by issue this file grows by one class per
primitive of the design: today bottleneck and head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class SiteKind(Enum):
    """Where in a layer a bottleneck sits."""

    ATTENTION = "attention"  # after the attention output projection
    OUTPUT = "output"  # after the second feed-forward projection


class Residual(Enum):
    """What is added to the bottleneck's output (`residual_before_ln` of the checkpoint)."""

    INPUT = "input"  # the projection's output
    POST_ADD = "post_add"  # the same plus the layer's residual
    NORMED = "normed"  # the bottleneck's own input, after the layer's LayerNorm if that comes first


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A tensor inside an adapter's flat buffer; offset and shape count elements."""

    offset: int
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n


@dataclass(frozen=True, slots=True)
class Affine:
    """Weight and bias of a Linear ([out, in] and [out]) or a LayerNorm (both [H])."""

    weight: TensorSlice
    bias: TensorSlice | None


@dataclass(frozen=True, slots=True)
class BottleneckStyle:
    """The order of the elementwise steps around a bottleneck. Samples of equal style share them.

    Names are those of the checkpoint's configuration.
    """

    activation: str
    is_parallel: bool
    original_ln_before: bool
    original_ln_after: bool
    residual: Residual
    ln_before: bool
    ln_after: bool
    adapter_residual_before_ln: bool
    use_gating: bool


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Down-projection, activation, up-projection at one site. Scaling is multiplied into `up`."""

    style: BottleneckStyle
    width: int
    down: Affine  # [R, H]
    up: Affine  # [H, R]
    norm_before: Affine | None
    norm_after: Affine | None
    gate: Affine | None  # [1, H]
    activation_weight: TensorSlice | None  # the learned slope of prelu, [1]


class Task(Enum):
    """What an adapter's answer is."""

    EMBEDDING = "embedding"
    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi_label"
    REGRESSION = "regression"
    TOKEN_CLASSIFICATION = "token_classification"
    QUESTION_ANSWERING = "question_answering"


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """One Linear of a head and the activation behind it; None is the identity."""

    dense: Affine
    activation: str | None


@dataclass(frozen=True, slots=True)
class Head:
    """A prediction head.

    `reads_tokens`: it answers every token (tagging, question answering), not one vector.
    `use_pooler`: the vector is the base's pooler output, otherwise the hidden state at position 0.
    """

    name: str
    task: Task
    layers: tuple[HeadLayer, ...]
    labels: tuple[str, ...]
    reads_tokens: bool
    use_pooler: bool


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Everything the engine knows of an adapter besides the numbers in its flat buffer."""

    sites: Mapping[tuple[int, SiteKind], Bottleneck]
    head: Head | None
    num_elements: int

    @property
    def task(self) -> Task:
        return self.head.task if self.head else Task.EMBEDDING
