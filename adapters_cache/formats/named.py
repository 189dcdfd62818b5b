"""Configurations by name, as users and very old files write them: `seq_bn[reduction_factor=8]|lora[r=4]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.errors import UnsupportedConfig

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
_LORA = {"architecture": "lora"}
_IA3 = {"composition_mode": "scale", "r": 1, "alpha": 1, "attn_matrices": ["k", "v"], "intermediate_lora": True}
_VERA = {"vera_d": 0.1, "vera_b": 0.0}
_PREFIX = {"architecture": "prefix_tuning"}
_REFT = {"architecture": "reft", "layers": "all", "orthogonality": False}
_GATED = {"use_gating": True}
NAMED: Mapping[str, Mapping[str, Any]] = {
    "seq_bn": _SEQ,
    "double_seq_bn": _DOUBLE,
    "par_bn": _PARALLEL,
    "scaled_par_bn": _PARALLEL | {"scaling": "learned"},
    "seq_bn_inv": _SEQ | _INVERTIBLE,
    "double_seq_bn_inv": _DOUBLE | _INVERTIBLE,
    "compacter": _DOUBLE | _COMPACTER,
    "compacter++": _SEQ | _COMPACTER,
    "prefix_tuning": _PREFIX,
    "prefix_tuning_flat": _PREFIX | {"flat": True},
    "prompt_tuning": {"architecture": "prompt_tuning"},
    "lora": _LORA,
    "ia3": _LORA | _IA3,
    "dora": _LORA | {"use_dora": True},
    "vera": _LORA | _VERA,
    "dvora": _LORA | _VERA | {"use_dora": True},
    "mtl_lora": {"architecture": "mtl_lora"},
    "loreft": _REFT | {"orthogonality": True},
    "noreft": _REFT,
    "direft": _REFT | {"subtract_projection": False},
}
UNIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "mam": (_PREFIX | {"bottleneck_size": 800}, _PARALLEL),
    "unipelt": (_PREFIX | {"prefix_length": 10} | _GATED, _SEQ | _GATED, _LORA | {"alpha": 2} | _GATED),
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


def expand(text: str) -> dict[str, Any]:
    """Expand the name of a configuration, with overrides, or of several joined by `|`. Raises UnsupportedConfig."""
    configs = [config for part in text.split("|") for config in _expand(part.strip(), text)]
    return configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}


def _expand(part: str, text: str) -> list[dict[str, Any]]:
    match = _STRING.fullmatch(part)
    name = match[1] if match else part
    name = ALIASES.get(name, name)
    if match and name in UNIONS and match[2] is None:
        return [dict(config) for config in UNIONS[name]]
    if match is None or name not in NAMED:
        raise UnsupportedConfig(
            f"config is {text[:100]!r}, which names no configuration; known are {', '.join([*NAMED, *UNIONS])},"
            " overrides in brackets, several joined by |",
            field="config",
            value=text[:100],
        )
    config = dict(NAMED[name])
    for item in filter(None, _split(match[2] or "")):
        key, _, value = item.partition("=")
        config[key.strip()] = _literal(value.strip())
    return [config]


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")
