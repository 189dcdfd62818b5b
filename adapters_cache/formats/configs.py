"""AdapterHub adapter configurations of every age -> the canonical one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapters_cache.formats.checkpoint import BOTTLENECK, UNION
from adapters_cache.formats.fields import refusal
from adapters_cache.formats.named import NAMED, UNIONS, expand
from adapters_cache.formats.schemas import BOTTLENECK_FIELDS, SCHEMAS
from server.errors import UnsupportedConfig

_VERSION = re.compile(r"adapters\.(\d{1,9})\.(\d{1,9})(?!\d)")


def canonical_config(envelope: Mapping[str, Any], *, has_invertible: bool) -> dict[str, Any]:
    """Give the canonical configuration of an `adapter_config.json`.

    has_invertible  whether the weights hold an invertible block
    Raises UnsupportedConfig naming the field and its value.
    """
    config = _object(envelope.get("config"))
    if config.get("architecture") == UNION:
        return _union(envelope, config)
    architecture = _architecture(config)
    if architecture is None:
        _modernise_bottleneck(config)
    if "version" not in envelope:
        _rename_gelu(config)
    if envelope.get("type") == "text_task" and not has_invertible and architecture is None:
        config["inv_adapter"] = None
    if architecture == "lora":
        _forget_scale(config, envelope.get("version"))
    return _read(envelope, config, architecture)


def _object(raw: Any) -> dict[str, Any]:
    config = expand(raw) if isinstance(raw, str) else raw
    if not isinstance(config, dict):
        raise refusal("config", raw, "an object or the name of a configuration")
    return dict(config)


def _union(envelope: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    members = config.get("configs")
    if not isinstance(members, list) or not members:
        raise refusal("config.configs", members, "a list of configurations")
    result = []
    for member in map(_object, members):
        architecture = _architecture(member)
        if architecture is None:
            _modernise_bottleneck(member)
        result.append(_read(envelope, member, architecture))
    return {"architecture": UNION, "configs": result}


def _architecture(config: dict[str, Any]) -> str | None:
    """The key of SCHEMAS; for bottlenecks the field is taken out. Raises UnsupportedConfig."""
    architecture = config.get("architecture")
    if architecture is None or architecture == BOTTLENECK:
        config.pop("architecture", None)
        return None
    if not isinstance(architecture, str):
        raise refusal("config.architecture", architecture, "a name")
    if architecture not in SCHEMAS:
        raise UnsupportedConfig(
            f"config.architecture is {architecture[:100]!r}, which is not supported; supported are"
            f" {', '.join([*NAMED, *UNIONS])} and their variants",
            field="config.architecture",
            value=architecture[:100],
        )
    return architecture


def _read(envelope: Mapping[str, Any], config: Mapping[str, Any], architecture: str | None) -> dict[str, Any]:
    # before there were versions, configurations kept fields of releases before them; later ones know what they write
    return SCHEMAS[architecture].read(config, tolerates="version" not in envelope)


def _modernise_bottleneck(config: dict[str, Any]) -> None:
    for name in list(config):
        # files of mid-2020 wrote some names with capitals: MH_Adapter, LN_before
        if name not in BOTTLENECK_FIELDS and name.lower() in {*BOTTLENECK_FIELDS, "invertible_adapter"}:
            config[name.lower()] = config.pop(name)
    if "invertible_adapter" in config:
        _flatten_invertible(config, config.pop("invertible_adapter"))


def _rename_gelu(config: dict[str, Any]) -> None:
    """Files without a version called the tanh approximation `gelu` and the exact form `gelu_orig`."""
    if isinstance(name := config.get("non_linearity"), str):
        config["non_linearity"] = {"gelu": "gelu_new", "gelu_orig": "gelu"}.get(name, name)


def _forget_scale(config: dict[str, Any], version: Any) -> None:
    """The first releases of `adapters` wrote an alpha that their forward pass did not read."""
    match = _VERSION.match(version) if isinstance(version, str) else None
    if match and (int(match[1]), int(match[2])) < (1, 1):
        config["alpha"] = config.get("r", SCHEMAS["lora"].fields["r"].default)


def _flatten_invertible(config: dict[str, Any], nested: Any) -> None:
    if nested is None:
        nested = {}
    if not isinstance(nested, dict):
        raise refusal("config.invertible_adapter", nested, "an object or null")
    config["inv_adapter"] = nested.get("block_type")
    config["inv_adapter_reduction_factor"] = nested.get("reduction_factor")
