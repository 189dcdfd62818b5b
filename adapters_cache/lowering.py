"""Lower a checkpoint to the primitives that the engine knows. Exactly, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from adapters_cache.draft import BaseWeights, Draft
from adapters_cache.families import family_of
from adapters_cache.flat import TensorSource
from adapters_cache.formats.checkpoint import FUSION, Checkpoint, members_of
from adapters_cache.formats.keys import layer_of
from adapters_cache.lower_bottleneck import lower_bottleneck
from adapters_cache.lower_fusion import lower_fusion
from adapters_cache.lower_head import lower_head
from adapters_cache.lower_lora import lower_lora
from adapters_cache.lower_peft import lower_peft
from adapters_cache.lower_prefix import lower_prefix, lower_prompt
from adapters_cache.lower_reft import lower_reft
from server.core import BaseInfo
from server.errors import WrongBase
from server.primitives import AdapterSpec

VERSION = "1"  # of what lowering gives: raise it when the same checkpoint is lowered to other numbers, or differently

METHODS: Mapping[str | None, Callable[[Mapping[str, Any], Draft], None]] = {
    None: lower_bottleneck,
    "lora": lower_lora,
    "mtl_lora": lower_lora,
    "prefix_tuning": lower_prefix,
    "prompt_tuning": lower_prompt,
    "reft": lower_reft,
}


def lower(
    checkpoint: Checkpoint, base: BaseInfo, weights: BaseWeights | None = None
) -> tuple[AdapterSpec, list[Tensor]]:
    """Give the description of an adapter and the tensors, float32, whose concatenation is its flat buffer.

    weights  the base's own, which DoRA's lowering needs; language models' heads are smaller with them
    Only differentiable operations on the checkpoint's tensors: training runs this at every step.
    Raises WrongBase, MalformedCheckpoint, UnsupportedConfig, and Internal where weights are needed and not given.
    """
    config = checkpoint.config
    if config is not None and "peft_type" in config:
        return lower_peft(checkpoint, base, weights)
    check_base(checkpoint, base)
    draft, fusion = Draft(base, weights, TensorSource(checkpoint.tensors)), None
    if config is not None:
        lower_members(config, draft)
    if config is not None and config.get("architecture") == FUSION:
        fusion = lower_fusion(config, draft)
    draft.source.check_empty()
    heads = {head.name: lower_head(head, base, draft.flat, weights) for head in checkpoint.heads}
    own = heads[checkpoint.head.name] if checkpoint.head else _own(checkpoint.name, heads)
    return draft.spec(head=own, heads=heads, fusion=fusion), draft.flat.tensors


def lower_members(config: Mapping[str, Any], draft: Draft) -> None:
    """Lower the method of a canonical configuration, of a union each of its members."""
    for member in members_of(config):
        METHODS[member.get("architecture")](member, draft)


def _own(name: str, heads: Mapping[str, Any]) -> Any:
    """The head that answers by default where several lie beside an adapter."""
    return next(iter(heads.values())) if len(heads) == 1 else heads.get(name)


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
    named = {layer for key in checkpoint.tensors if (layer := layer_of(key, base.layers_per_group)) is not None}
    if not named:
        return
    left_out = {layer for member in checkpoint.members for layer in member.get("leave_out", ())}
    layers = named | left_out
    depth = max(layers) + 1
    # layers may be missing in between in a damaged file: that is for the exact key check to say
    is_complete = layers == set(range(depth)) and not _selects(checkpoint)
    if depth > base.num_layers or is_complete:
        _expect("num_layers", depth, base.num_layers)


def _selects(checkpoint: Checkpoint) -> bool:
    """Whether some method is in chosen layers only, so that no tensor tells of the last one."""
    return any(member.get("layers", "all") != "all" for member in checkpoint.members)


def _expect(field: str, ours: str | int, theirs: str | int) -> None:
    if ours != theirs:
        raise WrongBase(
            f"the adapter was made for {field} {ours}, the resident base has {field} {theirs};"
            " serve it on the base it was trained on",
            field=field,
            adapter=str(ours),
            base=str(theirs),
        )
