"""What every adapter is lowered to: plain descriptions, no tensors.

`adapters_cache.lowering` makes them from a checkpoint, `server.model` runs them. The weights themselves are one flat
buffer per adapter; a `TensorSlice` says where in it a tensor lies.

Shapes: H hidden size, E embedding size, R width or rank, P prefix or prompt length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class SiteKind(Enum):
    """Where in a layer a bottleneck sits."""

    ATTENTION = "attention"  # after the attention output projection
    OUTPUT = "output"  # after the second feed-forward projection


class Projection(Enum):
    """A Linear of a layer that takes low-rank deltas and channel scales."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    QKV = "qkv"  # all three in one Linear, [3H, H]
    INTERMEDIATE = "intermediate"  # first feed-forward projection
    OUTPUT = "output"  # second feed-forward projection
    ATTENTION_OUTPUT = "attention_output"  # after attention; only PEFT adapts it


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
    """Down-projection, activation, up-projection at one site. Scaling is multiplied into `up`.

    Houlsby et al. 2019, arXiv:1902.00751; Compacter's Kronecker factors (2106.04647) are multiplied out.
    """

    style: BottleneckStyle
    width: int
    down: Affine  # [R, H]
    up: Affine  # [H, R]
    norm_before: Affine | None
    norm_after: Affine | None
    gate: Affine | None  # [1, H]
    activation_weight: TensorSlice | None  # the learned slope of prelu, [1]


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter does to the output y = W x + b of one projection: channel * (y + gate * up (down x)) + bias.

    With `input_scale` the Linear itself and `down` read x * input_scale.

    LoRA (Hu et al. 2021, arXiv:2106.09685): scale multiplied into `up`; with a gate there is no other scale.
    DoRA (2402.09353): `channel` is magnitude / ||W + BA|| per output. IA3 (2205.05638): only `channel`.
    VeRA (2310.11454) and DvoRA: the shared and own matrices multiplied out.

    down      [R, in], up [out, R]; both None for a pure channel scale
    channel   [out], or None
    gate      [G, in]: mean over a sample's tokens of sigmoid(gate x). G is 1, or the number of blocks: then ranks (or,
              for a pure channel scale, outputs) are cut into G equal blocks with a gate each
    is_scale  the method composes as a scale: stacked ones multiply, and a gate multiplies `channel`
    bias      [out], added last (PEFT's DoRA leaves the Linear's bias unscaled)
    input_scale   [in] (PEFT's IA3 in feed-forward modules)
    """

    down: TensorSlice | None
    up: TensorSlice | None
    channel: TensorSlice | None
    gate: Affine | None
    is_scale: bool
    bias: TensorSlice | None = None
    input_scale: TensorSlice | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values put in front of a layer's own (Li and Liang 2021, arXiv:2101.00190).

    keys, values   [P, H], heads side by side
    gate           [1, H] or [2, H] (keys, values) on the layer's input; mean of sigmoid over a sample's tokens
    """

    keys: TensorSlice
    values: TensorSlice
    gate: Affine | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Embeddings [P, E] put in front of the tokens or behind the first one (Lester et al. 2021, arXiv:2104.08691)."""

    embeddings: TensorSlice
    is_after_first: bool
    is_before_embeddings: bool = False  # they take the place of word embeddings, with positions, types and LayerNorm


@dataclass(frozen=True, slots=True)
class Coupling:
    """NICE coupling on the embeddings (Dinh et al. 2015; MAD-X, Pfeiffer et al. 2020, arXiv:2005.00052).

    Halves x1 (first E // 2 channels) and x2: y1 = x1 + f(x2), y2 = x2 + g(y1); f and g are Linear, activation, Linear.
    """

    activation: str
    f: tuple[Affine, Affine]
    g: tuple[Affine, Affine]
    activation_weight: TensorSlice | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """h + (act(W h + b) - R h) @ R at some positions after a layer (ReFT, Wu et al. 2024, arXiv:2404.03592).

    source        W [R, H], b [R]
    projection    [R, H]; rows orthonormal where the method asks for it
    """

    source: Affine
    projection: TensorSlice


@dataclass(frozen=True, slots=True)
class Edits:
    """One layer's edits: `first` on the first `num_first` tokens of a sample, `last` on its last `num_last`.

    Where both meet, `last` wins. subtracts: whether R h is subtracted (DiReFT leaves it out).
    """

    activation: str | None
    num_first: int
    num_last: int
    first: Edit | None
    last: Edit | None
    subtracts: bool = True


@dataclass(frozen=True, slots=True)
class FusionSite:
    """AdapterFusion at one site (Pfeiffer et al. 2021, arXiv:2005.00247): attention over the members' outputs."""

    query: Affine | None  # [H, H]
    key: Affine | None
    value: Affine | None


@dataclass(frozen=True, slots=True)
class Fusion:
    """A fusion of `members`, in their order; `temperature` divides the scores."""

    members: tuple[str, ...]
    query_before_ln: bool
    residual_before: bool
    value_before_softmax: bool
    temperature: float
    sites: Mapping[tuple[int, SiteKind], FusionSite]


class Task(Enum):
    """What an adapter's answer is."""

    EMBEDDING = "embedding"
    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi_label"
    REGRESSION = "regression"
    TOKEN_CLASSIFICATION = "token_classification"
    QUESTION_ANSWERING = "question_answering"
    MULTIPLE_CHOICE = "multiple_choice"
    FILL_MASK = "fill_mask"
    CAUSAL_LM = "causal_lm"
    DEPENDENCY_PARSING = "dependency_parsing"


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """One Linear of a head, then an activation (None: identity), then a LayerNorm (None: none).

    The LayerNorm is that of language-model heads and uses the base's epsilon.
    """

    dense: Affine
    activation: str | None
    norm: Affine | None = None


@dataclass(frozen=True, slots=True)
class Biaffine:
    """Arc and relation scores of a dependency parser (Glavas and Vulic 2021, arXiv:2008.06788).

    arcs [1, H+1, H], relations [num_labels, H+1, H+1]
    """

    arcs: TensorSlice
    relations: TensorSlice


@dataclass(frozen=True, slots=True)
class Head:
    """A prediction head.

    reads_tokens       it answers every token (tagging, question answering, language models), not one vector
    use_pooler         the vector is the base's pooler output, otherwise the hidden state at position 0
    is_decoder_tied    the last layer's weight is the base's input embedding matrix and is not stored: `layers[-1]`
                       then has only its bias, as `Affine.bias`, and a weight slice of no elements
    """

    name: str
    task: Task
    layers: tuple[HeadLayer, ...]
    labels: tuple[str, ...]
    reads_tokens: bool
    use_pooler: bool
    biaffine: Biaffine | None = None
    is_decoder_tied: bool = False


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Everything the engine knows of an adapter besides the numbers in its flat buffer.

    head    the one that answers unless the request names another; `heads` has all of them by name
    position_offset   added to every token's position id (PEFT counts prefixes as positions)
    """

    sites: Mapping[tuple[int, SiteKind], Bottleneck]
    head: Head | None
    num_elements: int
    projections: Mapping[tuple[int, Projection], Delta] = field(default_factory=dict)
    prefixes: Mapping[int, Prefix] = field(default_factory=dict)
    edits: Mapping[int, Edits] = field(default_factory=dict)
    prompt: Prompt | None = None
    coupling: Coupling | None = None
    fusion: Fusion | None = None
    heads: Mapping[str, Head] = field(default_factory=dict)
    position_offset: int = 0

    @property
    def all_heads(self) -> tuple[Head, ...]:
        """In the order that branches count them by."""
        return tuple(self.heads.values()) or ((self.head,) if self.head else ())

    @property
    def task(self) -> Task:
        return self.head.task if self.head else Task.EMBEDDING
