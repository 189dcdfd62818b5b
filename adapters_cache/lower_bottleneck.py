"""Bottleneck configurations (AdapterHub's BnConfig) -> the bottleneck primitive, site by site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters_cache.draft import Draft
from adapters_cache.formats.fields import refusal
from adapters_cache.lower_coupling import lower_coupling
from adapters_cache.lower_phm import phm_weight
from server.primitives import Affine, Bottleneck, BottleneckStyle, Residual, SiteKind

SAME_ACTIVATION = {"swish": "silu", "leakyrelu": "leaky_relu"}  # fewer distinct styles in a batch


def lower_bottleneck(config: Mapping[str, Any], draft: Draft) -> None:
    """Lower every site of every layer that is not left out, and the invertible block.

    Raises MalformedCheckpoint, UnsupportedConfig.
    """
    if config["residual_before_ln"] == "post_add" and not (config["original_ln_before"] or config["is_parallel"]):
        raise refusal("config.residual_before_ln", "post_add", "true or false where original_ln_before is false")
    style = style_of(config, is_plugin=draft.family.is_plugin)
    kinds = [
        kind
        for kind, field in ((SiteKind.ATTENTION, "mh_adapter"), (SiteKind.OUTPUT, "output_adapter"))
        if config[field]
    ]
    for layer in range(draft.base.num_layers):
        if layer in config["leave_out"] or not kinds:
            continue
        width = width_of(config["reduction_factor"], layer, draft.base.hidden_size)
        for kind in kinds:
            what = f"the bottleneck site {kind.value} of layer {layer}"
            draft.check_free(draft.sites, (layer, kind), what)
            path = draft.family.site(layer, kind, draft.base.layers_per_group)
            site = _Site(path, width, config, draft).lower(style)
            draft.put(draft.sites, (layer, kind), site, what)
    if config["inv_adapter"] is not None:
        lower_coupling(config, draft)


def style_of(config: Mapping[str, Any], *, is_plugin: bool = False) -> BottleneckStyle:
    """Give the order of steps. Fields that have no effect in a configuration take one value, so that styles agree.

    is_plugin  the family's own LayerNorm never runs after a bottleneck, whatever the configuration says
    """
    if is_plugin and not config["original_ln_after"]:
        raise refusal("config.original_ln_after", False, "true: the library refuses anything else for this family")
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
        original_ln_after=config["original_ln_after"] and not is_plugin,
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

    def __init__(self, path: str, width: int, config: Mapping[str, Any], draft: Draft) -> None:
        self._path, self._width, self._config, self._draft = path, width, config, draft
        self._hidden_size = draft.base.hidden_size

    def lower(self, style: BottleneckStyle) -> Bottleneck:
        hidden = (self._hidden_size,)
        take, lay = self._draft.source.take, self._draft.flat.add
        # with ln_before the LayerNorm is the first module of adapter_down
        down, down_bias = self._linear(f"adapter_down.{int(style.ln_before)}", self._hidden_size, self._width)
        up, up_bias = self._scaled(*self._linear("adapter_up", self._width, self._hidden_size))
        return Bottleneck(
            style=style,
            width=self._width,
            down=Affine(lay(down), lay(down_bias)),
            up=Affine(lay(up), lay(up_bias)),
            norm_before=self._affine("adapter_norm_before", *hidden) if style.ln_before else None,
            norm_after=self._affine("adapter_norm_after", *hidden) if style.ln_after else None,
            gate=self._affine("gate", 1, *hidden) if style.use_gating else None,
            activation_weight=lay(take(f"{self._path}.non_linearity.f.weight", 1))
            if style.activation == "prelu"
            else None,
        )

    def _linear(self, name: str, num_in: int, num_out: int) -> tuple[Tensor, Tensor]:
        """Weight [out, in] and bias [out]."""
        path, take = f"{self._path}.{name}", self._draft.source.take
        if not self._config["phm_layer"]:
            return take(f"{path}.weight", num_out, num_in), take(f"{path}.bias", num_out)
        weight = phm_weight(self._config, path, num_in, num_out, self._draft.source)
        return weight, take(f"{path}.b", num_out) if self._config["phm_bias"] else weight.new_zeros(num_out)

    def _scaled(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Scaling is linear, so it goes into weight and bias of the up-projection."""
        scaling = self._config["scaling"]
        if isinstance(scaling, str):
            factor = self._draft.source.take(f"{self._path}.scaling", 1 if scaling == "learned" else self._hidden_size)
            return weight * factor.unsqueeze(1), bias * factor
        return (weight, bias) if scaling == 1.0 else (weight * scaling, bias * scaling)

    def _affine(self, name: str, *shape: int) -> Affine:
        return self._draft.affine(f"{self._path}.{name}", *shape)
