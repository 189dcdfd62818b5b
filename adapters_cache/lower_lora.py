"""LoRA and its relatives (IA3, DoRA, VeRA, DvoRA, MTL-LoRA) -> deltas of projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters_cache.draft import Draft
from adapters_cache.formats.fields import refusal
from server.primitives import Affine, Delta, Projection

MATRICES = {"q": Projection.QUERY, "k": Projection.KEY, "v": Projection.VALUE}


@dataclass(frozen=True, slots=True)
class Target:
    """A Linear [num_out, num_in] of the base that a delta belongs to; `path` is that of its tensors."""

    layer: int
    projection: Projection
    path: str
    num_in: int
    num_out: int


def lower_lora(config: Mapping[str, Any], draft: Draft) -> None:
    """Lower every target of every layer that is not left out. Raises MalformedCheckpoint, UnsupportedConfig."""
    _refuse_unsupported(config)
    for target in _targets(config, draft):
        place = f"the {target.projection.value} projection of layer {target.layer}"
        draft.check_free(draft.projections, (target.layer, target.projection), place)
        if target.projection is Projection.QKV:
            delta = _fused(config, target, draft)
        elif config["composition_mode"] == "scale":
            delta = _scale(config, target, draft)
        else:
            delta = _low_rank(config, target, draft)
        draft.put(draft.projections, (target.layer, target.projection), delta, place)


def is_vera(config: Mapping[str, Any]) -> bool:
    return config["vera_d"] is not None or config["vera_b"] is not None


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config["composition_mode"] == "scale":
        if config["r"] != 1:
            raise refusal("config.r", config["r"], '1 where composition_mode is "scale"')
        if config["use_dora"] or is_vera(config) or config["architecture"] != "lora":
            raise refusal("config.composition_mode", "scale", '"add" with use_dora, vera_d, vera_b or mtl_lora')
    elif config["architecture"] == "mtl_lora" and (config["use_dora"] or is_vera(config)):
        raise refusal("config.architecture", "mtl_lora", '"lora" with use_dora, vera_d or vera_b')


def _targets(config: Mapping[str, Any], draft: Draft) -> Iterator[Target]:
    hidden, middle = draft.base.hidden_size, draft.base.intermediate_size
    shapes: dict[Projection, tuple[int, int]] = {}
    if config["selfattn_lora"] and config["attn_matrices"]:
        if Projection.QKV in draft.family.projections:
            shapes[Projection.QKV] = hidden, 3 * hidden
        else:
            shapes |= {MATRICES[name]: (hidden, hidden) for name in config["attn_matrices"]}
    if config["intermediate_lora"]:
        shapes[Projection.INTERMEDIATE] = hidden, middle * draft.family.intermediate_factor
    if config["output_lora"]:
        shapes[Projection.OUTPUT] = middle, hidden
    for layer in range(draft.base.num_layers):
        if layer not in config["leave_out"]:
            for projection, (num_in, num_out) in shapes.items():
                path = f"{draft.layer(layer)}.{draft.family.projections[projection]}.loras"
                yield Target(layer, projection, path, num_in, num_out)


def _scale(config: Mapping[str, Any], target: Target, draft: Draft) -> Delta:
    """IA3: alpha * v, and with a gate v alone."""
    vector = draft.source.take(f"{target.path}.lora_B", target.num_out, 1).squeeze(1)
    channel = vector if config["use_gating"] else vector * config["alpha"]
    return Delta(None, None, draft.flat.add(channel), _gate(config, target, draft), True)


def _low_rank(config: Mapping[str, Any], target: Target, draft: Draft) -> Delta:
    if is_vera(config):
        down, up = _vera(config, target, draft)
    elif config["architecture"] == "mtl_lora":
        down, up = _multi_task(config, target, draft)
    else:
        down = draft.source.take(f"{target.path}.lora_A", config["r"], target.num_in)
        up = draft.source.take(f"{target.path}.lora_B", target.num_out, config["r"])
    channel = None
    if config["use_dora"]:
        magnitude = draft.source.take(f"{target.path}.m.weight", target.num_out, 1).squeeze(1)
        weight = draft.base_weights.projection_weight(target.layer, target.projection).to(up)
        channel = draft.flat.add(magnitude / (weight + up @ down).norm(dim=1))  # of the product without its scale
    lay = draft.flat.add
    return Delta(lay(down), lay(up * _factor(config)), channel, _gate(config, target, draft), False)


def _factor(config: Mapping[str, Any]) -> float:
    """A gate takes the place of the scale."""
    return 1.0 if config["use_gating"] else config["alpha"] / config["r"]


def _vera(config: Mapping[str, Any], target: Target, draft: Draft) -> tuple[Tensor, Tensor]:
    """The diagonals are stored, and were trained, as full matrices."""
    rank, take, share = config["r"], draft.source.take, draft.source.share
    down = take(f"{target.path}.vera_D", rank, rank) @ share("lora_A", rank, target.num_in)
    return down, take(f"{target.path}.vera_B", target.num_out, target.num_out) @ share("lora_B", target.num_out, rank)


def _multi_task(config: Mapping[str, Any], target: Target, draft: Draft) -> tuple[Tensor, Tensor]:
    rank, count, take = config["r"], config["n_up_projection"], draft.source.take
    values = take(f"{target.path}.task_specific.values", rank)
    down = values.unsqueeze(1) * take(f"{target.path}.lora_A", rank, target.num_in)
    shares = torch.softmax(take(f"{target.path}.weights", count) / config["weights_sharpness"], 0)
    ups = take(f"{target.path}.lora_B", count, target.num_out, rank)
    return down, (shares[:, None, None] * ups).sum(0)


def _gate(config: Mapping[str, Any], target: Target, draft: Draft) -> Affine | None:
    return draft.affine(f"{target.path}.gate", 1, target.num_in) if config["use_gating"] else None


def _fused(config: Mapping[str, Any], target: Target, draft: Draft) -> Delta:
    """One Linear computes q, k and v: `n` of its thirds are adapted, each by its own block of A, B and gate."""
    if config["use_dora"] or is_vera(config) or config["architecture"] != "lora":
        raise refusal("config.architecture", config["architecture"], "plain LoRA or IA3 where q, k, v are one Linear")
    thirds = ["qkv".index(name) for name in config["attn_matrices"]]
    if config["composition_mode"] == "scale":
        return _fused_scale(config, thirds, target, draft)
    rank, third, lay = config["r"], target.num_out // 3, draft.flat.add
    num_ranks = rank * len(thirds)
    down = draft.source.take(f"{target.path}.lora_A", num_ranks, target.num_in)
    ups = draft.source.take(f"{target.path}.lora_B", third * len(thirds), rank) * _factor(config)
    up = torch.zeros(target.num_out, num_ranks, device=ups.device)
    for block, place in enumerate(thirds):
        rows, columns = slice(place * third, (place + 1) * third), slice(block * rank, (block + 1) * rank)
        up[rows, columns] = ups[block * third : (block + 1) * third]
    gate = draft.affine(f"{target.path}.gate", len(thirds), target.num_in) if config["use_gating"] else None
    return Delta(lay(down), lay(up), None, gate, False)


OPEN = 100.0  # a gate's bias: its sigmoid is 1 in every precision


def _fused_scale(config: Mapping[str, Any], thirds: list[int], target: Target, draft: Draft) -> Delta:
    """Thirds without a vector have ones, which alpha multiplies too; their gate is always open."""
    third, take = target.num_out // 3, draft.source.take
    vectors = take(f"{target.path}.lora_B", third * len(thirds), 1).view(len(thirds), third)
    channel = torch.ones(3, third, device=vectors.device)
    channel[thirds] = vectors
    gate = None
    if config["use_gating"]:
        weight = torch.zeros(3, target.num_in, device=vectors.device)
        bias = torch.full((3,), OPEN, device=vectors.device)
        weight[thirds] = take(f"{target.path}.gate.weight", len(thirds), target.num_in)
        bias[thirds] = take(f"{target.path}.gate.bias", len(thirds))
        gate = Affine(draft.flat.add(weight), draft.flat.add(bias))
    else:
        channel = channel * config["alpha"]
    return Delta(None, None, draft.flat.add(channel.reshape(-1)), gate, True)
