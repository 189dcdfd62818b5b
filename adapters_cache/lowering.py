"""Lower a checkpoint to the primitives that the engine knows. Exactly, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from adapters_cache.families import family_of
from adapters_cache.flat import FlatBuilder, TensorSource
from adapters_cache.formats.checkpoint import BOTTLENECK, NO_METHOD, Checkpoint
from adapters_cache.formats.keys import layer_of
from adapters_cache.lower_bottleneck import lower_bottleneck
from adapters_cache.lower_head import lower_head
from server.core import BaseInfo
from server.errors import WrongBase
from server.primitives import AdapterSpec, Bottleneck, SiteKind

Sites = dict[tuple[int, SiteKind], Bottleneck]


def _no_sites(checkpoint: Checkpoint, base: BaseInfo, source: TensorSource, flat: FlatBuilder) -> Sites:
    return {}


METHODS: Mapping[str, Callable[[Checkpoint, BaseInfo, TensorSource, FlatBuilder], Sites]] = {
    BOTTLENECK: lower_bottleneck,
    NO_METHOD: _no_sites,
}


def lower(checkpoint: Checkpoint, base: BaseInfo) -> tuple[AdapterSpec, list[Tensor]]:
    """Give the description of an adapter and the tensors, float32, whose concatenation is its flat buffer.

    Only differentiable operations on the checkpoint's tensors: training runs this at every step.
    Raises WrongBase, MalformedCheckpoint, UnsupportedConfig.
    """
    check_base(checkpoint, base)
    source, flat = TensorSource(checkpoint.tensors), FlatBuilder()
    sites = METHODS[checkpoint.method](checkpoint, base, source, flat)
    source.check_empty()
    head = lower_head(checkpoint.head, base, flat) if checkpoint.head else None
    return AdapterSpec(sites, head, flat.num_elements), flat.tensors


def check_base(checkpoint: Checkpoint, base: BaseInfo) -> None:
    """Raises WrongBase with both values, UnsupportedConfig if the family is unknown."""
    _expect("model_type", checkpoint.model_type, base.model_type)
    _expect("hidden_size", checkpoint.hidden_size, base.hidden_size)
    if checkpoint.base_fingerprint:
        _expect("base_fingerprint", checkpoint.base_fingerprint, base.fingerprint)
    family_of(base.model_type)
    _check_depth(checkpoint, base)


def _check_depth(checkpoint: Checkpoint, base: BaseInfo) -> None:
    """A deeper or shallower base shows in the layer numbers only."""
    if checkpoint.config is None:
        return
    layers = {layer for key in checkpoint.tensors if (layer := layer_of(key)) is not None}
    layers.update(checkpoint.config["leave_out"])
    if not layers:
        return
    depth = max(layers) + 1
    # layers may be missing in between in a damaged file: that is for the exact key check to say
    if depth > base.num_layers or layers == set(range(depth)):
        _expect("num_layers", depth, base.num_layers)


def _expect(field: str, ours: str | int, theirs: str | int) -> None:
    if ours != theirs:
        raise WrongBase(
            f"the adapter was made for {field} {ours}, the resident base has {field} {theirs};"
            " serve it on the base it was trained on",
            field=field,
            adapter=str(ours),
            base=str(theirs),
        )
