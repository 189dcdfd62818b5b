"""Bottleneck configurations (AdapterHub's BnConfig) -> the bottleneck primitive, site by site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters_cache.families import family_of
from adapters_cache.flat import FlatBuilder, TensorSource
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.fields import refusal
from server.core import BaseInfo
from server.errors import UnsupportedConfig
from server.primitives import Affine, Bottleneck, BottleneckStyle, Residual, SiteKind, TensorSlice

SAME_ACTIVATION = {"swish": "silu", "leakyrelu": "leaky_relu"}  # fewer distinct styles in a batch


def lower_bottleneck(
    checkpoint: Checkpoint, base: BaseInfo, source: TensorSource, flat: FlatBuilder
) -> dict[tuple[int, SiteKind], Bottleneck]:
    """Lower every site of every layer that is not left out. Raises MalformedCheckpoint, UnsupportedConfig."""
    config = checkpoint.config
    assert config is not None
    _refuse_unsupported(config)
    family, style = family_of(base.model_type), style_of(config)
    kinds = [
        kind
        for kind, field in ((SiteKind.ATTENTION, "mh_adapter"), (SiteKind.OUTPUT, "output_adapter"))
        if config[field]
    ]
    sites = {}
    for layer in range(base.num_layers):
        if layer in config["leave_out"] or not kinds:
            continue
        width = width_of(config["reduction_factor"], layer, base.hidden_size)
        for kind in kinds:
            site = _Site(family.site(layer, kind), width, base.hidden_size, source, flat)
            sites[layer, kind] = site.lower(config, style)
    return sites


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    for field in ("phm_layer", "inv_adapter"):
        if config[field]:
            raise UnsupportedConfig(
                f"config.{field} is {config[field]!r}: adapters of this kind are not supported yet",
                field=f"config.{field}",
                value=str(config[field]),
            )
    if config["residual_before_ln"] == "post_add" and not (config["original_ln_before"] or config["is_parallel"]):
        raise refusal("config.residual_before_ln", "post_add", "true or false where original_ln_before is false")


def style_of(config: Mapping[str, Any]) -> BottleneckStyle:
    """Give the order of steps. Fields that have no effect in a configuration take one value, so that styles agree."""
    is_parallel, ln_after = config["is_parallel"], config["ln_after"]
    ln_before_core = config["original_ln_before"] and not is_parallel
    residual = Residual.INPUT
    if ln_before_core and config["residual_before_ln"] is not True:
        residual = Residual.POST_ADD if config["residual_before_ln"] == "post_add" else Residual.NORMED
    activation = config["non_linearity"]
    return BottleneckStyle(
        activation=SAME_ACTIVATION.get(activation, activation),
        is_parallel=is_parallel,
        original_ln_before=ln_before_core,
        original_ln_after=config["original_ln_after"],
        residual=residual,
        ln_before=config["ln_before"],
        ln_after=ln_after,
        adapter_residual_before_ln=config["adapter_residual_before_ln"] and ln_after and not is_parallel,
        use_gating=config["use_gating"],
    )


def width_of(reduction_factor: int | float | Mapping[str, int | float], layer: int, hidden_size: int) -> int:
    """Give the bottleneck width in a layer, at least 1. Raises UnsupportedConfig if no factor is given for it."""
    factor = reduction_factor
    if isinstance(factor, Mapping):
        found = factor.get(str(layer), factor.get("default"))
        if found is None:
            raise refusal("config.reduction_factor", dict(factor), f'an entry for layer {layer} or "default"')
        factor = found
    return max(1, int(hidden_size // factor))


class _Site:
    """One bottleneck being taken from the checkpoint and laid out."""

    def __init__(self, path: str, width: int, hidden_size: int, source: TensorSource, flat: FlatBuilder) -> None:
        self._path, self._width, self._hidden_size = path, width, hidden_size
        self._source, self._flat = source, flat

    def lower(self, config: Mapping[str, Any], style: BottleneckStyle) -> Bottleneck:
        width, hidden = self._width, self._hidden_size
        # with ln_before the LayerNorm is the first module of adapter_down
        down = self._affine(f"adapter_down.{int(style.ln_before)}", (width, hidden))
        return Bottleneck(
            style=style,
            width=width,
            down=down,
            up=self._up(config["scaling"]),
            norm_before=self._affine("adapter_norm_before", (hidden,)) if style.ln_before else None,
            norm_after=self._affine("adapter_norm_after", (hidden,)) if style.ln_after else None,
            gate=self._affine("gate", (1, hidden)) if style.use_gating else None,
            activation_weight=self._slope() if style.activation == "prelu" else None,
        )

    def _up(self, scaling: float | str) -> Affine:
        """Scaling is linear, so it goes into weight and bias."""
        weight = self._take("adapter_up.weight", self._hidden_size, self._width)
        bias = self._take("adapter_up.bias", self._hidden_size)
        if isinstance(scaling, str):
            size = 1 if scaling == "learned" else self._hidden_size
            factor = self._take("scaling", size)
            weight, bias = weight.float() * factor.float().unsqueeze(1), bias.float() * factor.float()
        elif scaling != 1.0:
            weight, bias = weight.float() * scaling, bias.float() * scaling
        return Affine(self._flat.add(weight), self._flat.add(bias))

    def _affine(self, name: str, shape: tuple[int, ...]) -> Affine:
        weight = self._take(f"{name}.weight", *shape)
        bias = self._take(f"{name}.bias", shape[0])
        return Affine(self._flat.add(weight), self._flat.add(bias))

    def _slope(self) -> TensorSlice:
        return self._flat.add(self._take("non_linearity.f.weight", 1))

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._source.take(f"{self._path}.{name}", *shape)
