"""PEFT checkpoints -> primitives: LoRA, DoRA, IA3, prefix and prompt tuning, with their heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters_cache.draft import BaseWeights, Draft
from adapters_cache.families import FAMILIES
from adapters_cache.flat import TensorSource
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.peft_fields import IA3, LORA, PREFIX, PROMPT
from adapters_cache.formats.peft_targets import ALL_LINEAR, is_feedforward, is_target, value_of
from adapters_cache.lower_head import lower_head
from adapters_cache.lower_lora import Target
from adapters_cache.peft_heads import take_head
from server.core import BaseInfo
from server.errors import MalformedCheckpoint, UnsupportedConfig, WrongBase
from server.primitives import AdapterSpec, Delta, Prefix, Projection, Prompt

HAVE_CACHE = ("bert", "roberta", "xlm-roberta", "electra")  # families that take keys and values from outside
# What PEFT does that the engine does not run yet: refused, never left out. Empty once it runs all of it.
UNSERVED: frozenset[str] = frozenset()
ATTENTION_OUTPUT = {"distilbert": "attention.out_lin", "albert": "attention.dense", "modernbert": "attn.Wo"}


def lower_peft(
    checkpoint: Checkpoint, base: BaseInfo, weights: BaseWeights | None = None
) -> tuple[AdapterSpec, list[Tensor]]:
    """Give the description of an adapter and the tensors whose concatenation is its flat buffer.

    weights   the base's own; only DoRA is relative to them
    Raises WrongBase, MalformedCheckpoint, UnsupportedConfig.
    """
    config, draft = checkpoint.config, Draft(base, weights, TensorSource(checkpoint.tensors))
    assert config is not None
    _check_family(checkpoint, draft)
    position_offset = 0
    targets = list(_targets(checkpoint, config, draft)) if config["peft_type"] in (LORA, IA3) else []
    _refuse_unserved(config, targets)
    if config["peft_type"] in (LORA, IA3):
        for target in targets:
            delta = (_low_rank if config["peft_type"] == LORA else _scale)(config, target, draft)
            draft.put(draft.projections, (target.layer, target.projection), delta, f"module {target.path}")
    elif config["peft_type"] == PREFIX:
        _prefixes(config, draft)
        position_offset = config["num_virtual_tokens"]  # tokens are counted from behind the prefix
    elif config["peft_type"] == PROMPT:
        _prompt(config, draft)
    found = take_head(checkpoint, config.get("task_type"), base.model_type, draft.source)
    draft.source.check_empty()
    head = lower_head(found, base, draft.flat) if found else None
    heads = {head.name: head} if head else {}
    return draft.spec(head=head, heads=heads, position_offset=position_offset), draft.flat.tensors


def _refuse_unserved(config: Mapping[str, Any], targets: Sequence[Target]) -> None:
    """Raises UnsupportedConfig before anything that the engine cannot run is made."""
    is_ia3 = config["peft_type"] == IA3
    needs = (
        ("attention_output", "target_modules", any(t.projection is Projection.ATTENTION_OUTPUT for t in targets)),
        ("bias", "lora_bias", config.get("lora_bias", False)),
        ("bias", "use_dora", config.get("use_dora", False)),
        ("input_scale", "feedforward_modules", is_ia3 and any(is_feedforward(config, t.path) for t in targets)),
        ("position_offset", "peft_type", config["peft_type"] == PREFIX),
    )
    for name, field, is_needed in needs:
        if is_needed and name in UNSERVED:
            raise UnsupportedConfig(
                f"adapter_config.{field} is {str(config[field])[:100]}, which needs {name.replace('_', ' ')}:"
                " not served yet",
                field=f"adapter_config.{field}",
                value=str(config[field])[:100],
            )


def _check_family(checkpoint: Checkpoint, draft: Draft) -> None:
    """PEFT does not write down the family, but names begin with it where the adapter was trained with a head."""
    ours = draft.family.prefix
    for key in checkpoint.tensors:
        theirs = next((family.prefix for family in FAMILIES.values() if key.startswith(family.prefix)), ours)
        if theirs != ours:
            raise WrongBase(
                f"the adapter was made for a base whose modules are named {theirs}*, those of the resident base are"
                f" named {ours}*; serve it on the base it was trained on",
                field="model_type",
                adapter=theirs.rstrip("."),
                base=draft.base.model_type,
            )


# LoRA, DoRA, IA3


def _targets(checkpoint: Checkpoint, config: Mapping[str, Any], draft: Draft) -> Iterator[Target]:
    """The modules that have tensors, which must be those that the configuration names."""
    adapted = {name for key in checkpoint.tensors if (name := _module_of(key)) is not None}
    prefix = draft.family.prefix if any(name.startswith(draft.family.prefix) for name in adapted) else ""
    modules = list(_modules(prefix, draft))
    _check_targets(config, adapted, {target.path for target in modules}, draft)
    yield from (target for target in modules if target.path in adapted)


def _module_of(key: str) -> str | None:
    """The module that a tensor adapts; None for a module of its own, as in a head."""
    return next((key.rsplit(mark, 1)[0] for mark in (".lora_", ".ia3_l") if mark in key), None)


def _modules(prefix: str, draft: Draft) -> Iterator[Target]:
    """Every Linear that can be adapted, under its full name."""
    base, family = draft.base, draft.family
    hidden, middle = base.hidden_size, base.intermediate_size
    last = ATTENTION_OUTPUT.get(base.model_type, "attention.output.dense")
    shapes = {
        Projection.QKV: (hidden, 3 * hidden),
        Projection.INTERMEDIATE: (hidden, middle * family.intermediate_factor),
        Projection.OUTPUT: (middle, hidden),
    }
    for layer in range(base.num_layers):
        for projection, name in {**family.projections, Projection.ATTENTION_OUTPUT: last}.items():
            path = f"{prefix}{draft.layer(layer)}.{name}"
            yield Target(layer, projection, path, *shapes.get(projection, (hidden, hidden)))


def _check_targets(config: Mapping[str, Any], adapted: set[str], known: set[str], draft: Draft) -> None:
    if other := sorted(adapted - known):
        raise UnsupportedConfig(
            f"target module {other[0]} is not served; served are the Linears of attention and feed-forward of"
            f" the base's {draft.base.num_layers} layers",
            field="adapter_config.target_modules",
            value=other[0],
        )
    if config["target_modules"] == ALL_LINEAR:
        return
    named = {name for name in known if is_target(config, name)}
    if missing := sorted(named - adapted):
        raise MalformedCheckpoint(
            f"module {missing[0]} is one of target_modules, but has no tensors", tensor=missing[0]
        )
    if other := sorted(adapted - named):
        raise MalformedCheckpoint(f"module {other[0]} has tensors, but is none of target_modules", tensor=other[0])


def _low_rank(config: Mapping[str, Any], target: Target, draft: Draft) -> Delta:
    name, take = target.path, draft.source.take
    rank = value_of(config["rank_pattern"], name, config["r"])
    alpha = value_of(config["alpha_pattern"], name, config["lora_alpha"])
    scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
    down = take(f"{name}.lora_A.weight", rank, target.num_in)
    up = take(f"{name}.lora_B.weight", target.num_out, rank) * scale
    channel = bias = None
    if config["lora_bias"]:
        bias = take(f"{name}.lora_B.bias", target.num_out) * scale
    if config["use_dora"]:
        channel, bias = _dora(take(f"{name}.lora_magnitude_vector", target.num_out), down, up, target, draft)
    lay = draft.flat.add
    return Delta(
        lay(down),
        lay(up),
        None if channel is None else lay(channel),
        None,
        False,
        None if bias is None else lay(bias),
    )


def _dora(magnitude: Tensor, down: Tensor, up: Tensor, target: Target, draft: Draft) -> tuple[Tensor, Tensor | None]:
    """The channel, whose norm is of the scaled product, and what it takes from the Linear's own bias given back."""
    weight = draft.base_weights.projection_weight(target.layer, target.projection).to(up)
    own = draft.base_weights.projection_bias(target.layer, target.projection)
    channel = magnitude / torch.linalg.norm(weight + up @ down, dim=1)
    return channel, None if own is None else (1 - channel) * own.to(up)


def _scale(config: Mapping[str, Any], target: Target, draft: Draft) -> Delta:
    name = f"{target.path}.ia3_l"
    if is_feedforward(config, target.path):
        factor = draft.flat.add(draft.source.take(name, 1, target.num_in).squeeze(0))
        return Delta(None, None, None, None, True, input_scale=factor)
    return Delta(None, None, draft.flat.add(draft.source.take(name, target.num_out, 1).squeeze(1)), None, True)


# prefix and prompt tuning


def _prefixes(config: Mapping[str, Any], draft: Draft) -> None:
    """Projected ones too are stored as what the projection gave: [P, layers, keys and values, H]."""
    base, length = draft.base, config["num_virtual_tokens"]
    if base.model_type not in HAVE_CACHE:
        raise UnsupportedConfig(
            f"adapter_config.peft_type is {PREFIX!r}, which PEFT itself cannot run on {base.model_type}",
            field="adapter_config.peft_type",
            value=PREFIX,
        )
    _expect(config, token_dim=base.hidden_size, num_layers=base.num_layers, num_attention_heads=base.num_heads)
    stored = draft.source.take("prompt_embeddings", length, base.num_layers * 2 * base.hidden_size)
    parts = stored.reshape(length, base.num_layers, 2, base.hidden_size).permute(1, 2, 0, 3)
    for layer, (keys, values) in enumerate(parts):
        draft.prefixes[layer] = Prefix(draft.flat.add(keys.contiguous()), draft.flat.add(values.contiguous()), None)


def _prompt(config: Mapping[str, Any], draft: Draft) -> None:
    _expect(config, token_dim=draft.embedding_size)
    stored = draft.source.take("prompt_embeddings", config["num_virtual_tokens"], draft.embedding_size)
    draft.set_prompt(Prompt(draft.flat.add(stored), is_after_first=False, is_before_embeddings=True))


def _expect(config: Mapping[str, Any], **sizes: int) -> None:
    for field, theirs in sizes.items():
        if config[field] != theirs:
            raise WrongBase(
                f"the adapter was made for {field} {config[field]}, the resident base has {theirs};"
                " serve it on the base it was trained on",
                field=field,
                adapter=str(config[field]),
                base=str(theirs),
            )
