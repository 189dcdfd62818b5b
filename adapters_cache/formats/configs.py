"""AdapterHub adapter configurations of every age -> the canonical one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from adapters_cache.formats import fields as f
from adapters_cache.formats.fields import REQUIRED, Field, canonical, refusal
from server.errors import UnsupportedConfig

BOTTLENECK_FIELDS: Mapping[str, Field] = {
    "mh_adapter": Field(REQUIRED, f.boolean),
    "output_adapter": Field(REQUIRED, f.boolean),
    "cross_adapter": Field(False, f.boolean),
    "reduction_factor": Field(REQUIRED, f.reduction_factor),
    "non_linearity": Field(REQUIRED, f.activation),
    "original_ln_before": Field(False, f.boolean),
    "original_ln_after": Field(True, f.boolean),
    "ln_before": Field(False, f.boolean),
    "ln_after": Field(False, f.boolean),
    "residual_before_ln": Field(True, f.residual),
    "adapter_residual_before_ln": Field(False, f.boolean),
    "is_parallel": Field(False, f.boolean),
    "scaling": Field(1.0, f.scaling),
    "use_gating": Field(False, f.boolean),
    "inv_adapter": Field(None, f.one_of(None, "nice", "glow")),
    "inv_adapter_reduction_factor": Field(None, f.optional_number),
    "leave_out": Field([], f.layers),
    "phm_layer": Field(False, f.boolean),
    "phm_dim": Field(4, f.positive_int),
    "phm_rank": Field(1, f.positive_int),
    "factorized_phm_W": Field(True, f.boolean),
    "shared_W_phm": Field(False, f.boolean),
    "shared_phm_rule": Field(True, f.boolean),
    "factorized_phm_rule": Field(False, f.boolean),
    "phm_bias": Field(True, f.boolean),
}
TRAINING_ONLY = frozenset(
    (
        "learn_phm",
        "phm_c_init",
        "phm_init_range",
        "hypercomplex_nonlinearity",
        "init_weights",
        "init_weights_seed",
        "dropout",
        "stochastic_depth",
    )
)
LEFTOVERS = frozenset(("architecture", "attention_type", "new_attention_norm", "config_id"))

_SEQ = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 16,
    "non_linearity": "relu",
    "original_ln_before": True,
}
_DOUBLE = _SEQ | {"mh_adapter": True, "non_linearity": "swish", "original_ln_before": False}
_PARALLEL = _SEQ | {"reduction_factor": 2, "is_parallel": True, "scaling": 4.0, "original_ln_before": False}
_INVERTIBLE = {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
_COMPACTER = {"phm_layer": True, "reduction_factor": 32, "non_linearity": "gelu"}
NAMED: Mapping[str, Mapping[str, Any]] = {
    "seq_bn": _SEQ,
    "double_seq_bn": _DOUBLE,
    "par_bn": _PARALLEL,
    "scaled_par_bn": _PARALLEL | {"scaling": "learned"},
    "seq_bn_inv": _SEQ | _INVERTIBLE,
    "double_seq_bn_inv": _DOUBLE | _INVERTIBLE,
    "compacter": _DOUBLE | _COMPACTER,
    "compacter++": _SEQ | _COMPACTER,
}
ALIASES = {
    "pfeiffer": "seq_bn",
    "houlsby": "double_seq_bn",
    "parallel": "par_bn",
    "scaled_parallel": "scaled_par_bn",
    "pfeiffer+inv": "seq_bn_inv",
    "houlsby+inv": "double_seq_bn_inv",
}
_STRING = re.compile(r"([\w+]+)(?:\[([^\[\]]*)\])?")
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None, "null": None}


def canonical_config(envelope: Mapping[str, Any], *, has_invertible: bool) -> dict[str, Any]:
    """Give the canonical configuration of an `adapter_config.json`.

    has_invertible  whether the weights hold an invertible block
    Raises UnsupportedConfig naming the field and its value.
    """
    raw = envelope.get("config")
    config = expand(raw) if isinstance(raw, str) else raw
    if not isinstance(config, dict):
        raise refusal("config", raw, "an object or the name of a configuration")
    architecture = config.get("architecture")
    if architecture is not None and not isinstance(architecture, str):
        raise refusal("config.architecture", architecture, "a name")
    try:
        method = METHODS[architecture]
    except KeyError:
        raise _unsupported("config.architecture", str(architecture)) from None
    return method(envelope, config, has_invertible)


def expand(text: str) -> dict[str, Any]:
    """Expand the name of a configuration, with overrides: `seq_bn[reduction_factor=8]`. Raises UnsupportedConfig."""
    match = _STRING.fullmatch(text.strip())
    name = match[1] if match else text
    name = ALIASES.get(name, name)
    if match is None or name not in NAMED:
        raise _unsupported("config", text)
    config = dict(NAMED[name])
    for item in filter(None, (match[2] or "").split(",")):
        key, _, value = item.partition("=")
        config[key.strip()] = _literal(value.strip())
    return config


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _bottleneck(envelope: Mapping[str, Any], raw: Mapping[str, Any], has_invertible: bool) -> dict[str, Any]:
    config = {_modern_name(name): value for name, value in raw.items()}
    if "version" not in envelope:
        _rename_gelu(config)
    if "invertible_adapter" in config:
        _flatten_invertible(config, config.pop("invertible_adapter"))
    if envelope.get("type") == "text_task" and not has_invertible:
        config["inv_adapter"] = None
    ignored = TRAINING_ONLY | LEFTOVERS
    return canonical(
        BOTTLENECK_FIELDS, {name: value for name, value in config.items() if name not in ignored}, "config"
    )


def _modern_name(name: str) -> str:
    """Files of mid-2020 wrote some names with capitals: MH_Adapter, LN_before."""
    if name not in BOTTLENECK_FIELDS and name.lower() in BOTTLENECK_FIELDS:
        return name.lower()
    return name


def _rename_gelu(config: dict[str, Any]) -> None:
    """Files without a version called the tanh approximation `gelu` and the exact form `gelu_orig`."""
    name = config.get("non_linearity")
    if isinstance(name, str):
        config["non_linearity"] = {"gelu": "gelu_new", "gelu_orig": "gelu"}.get(name, name)


def _flatten_invertible(config: dict[str, Any], nested: Any) -> None:
    if nested is None:
        nested = {}
    if not isinstance(nested, dict):
        raise refusal("config.invertible_adapter", nested, "an object or null")
    config["inv_adapter"] = nested.get("block_type")
    config["inv_adapter_reduction_factor"] = nested.get("reduction_factor")


def _unsupported(field: str, value: str) -> UnsupportedConfig:
    return UnsupportedConfig(
        f"{field} is {value[:100]!r}, which is not supported; supported are bottleneck adapters:"
        f" {', '.join(NAMED)} and their variants",
        field=field,
        value=value[:100],
    )


METHODS: Mapping[str | None, Callable[[Mapping[str, Any], Mapping[str, Any], bool], dict[str, Any]]] = {
    None: _bottleneck,
    "bottleneck": _bottleneck,
}
