"""Check and normalise single configuration values. Every refusal names the field and the value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import UnsupportedConfig

REQUIRED = object()
# Names that transformers' ACT2FN knows, and "leakyrelu". Not xielu: its learned parameters have no documented keys.
ACTIVATIONS = frozenset(
    (
        "gelu",
        "gelu_10",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_pytorch_tanh",
        "hardswish",
        "laplace",
        "leaky_relu",
        "leakyrelu",
        "linear",
        "mish",
        "prelu",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "swish",
        "tanh",
    )
)


def refusal(field: str, value: object, expected: str) -> UnsupportedConfig:
    shown = repr(value)[:100]
    return UnsupportedConfig(f"{field} is {shown}, expected {expected}", field=field, value=shown)


@dataclass(frozen=True, slots=True)
class Field:
    """A configuration field: its default, and a check that gives the normalised value."""

    default: Any
    check: Callable[[str, Any], Any]


def canonical(fields: Mapping[str, Field], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Give every field of `fields`, checked, defaults filled in. Raises UnsupportedConfig."""
    for name, value in config.items():
        if name not in fields:
            shown = repr(value)[:100]
            raise UnsupportedConfig(
                f"{where}.{name} is {shown}: no such field is known, so it cannot be served exactly",
                field=f"{where}.{name}",
                value=shown,
            )
    result = {}
    for name, field in fields.items():
        value = config.get(name, field.default)
        if value is REQUIRED:
            raise refusal(f"{where}.{name}", None, "a value: the field has no default")
        result[name] = field.check(f"{where}.{name}", value)
    return result


def boolean(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise refusal(field, value, "true or false")
    return value


def positive_int(field: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise refusal(field, value, "a whole number of at least 1")
    return value


def positive_number(field: str, value: Any) -> int | float:
    """Whole numbers come back as int, so that 16 and 16.0 are the same configuration."""
    if not _is_number(value) or value <= 0:
        raise refusal(field, value, "a number above 0")
    return int(value) if float(value).is_integer() else float(value)


def count(field: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise refusal(field, value, "a whole number of at least 0")
    return value


def optional_count(field: str, value: Any) -> int | None:
    return None if value is None else positive_int(field, value)


def number(field: str, value: Any) -> int | float:
    if not _is_number(value):
        raise refusal(field, value, "a number")
    return int(value) if float(value).is_integer() else float(value)


def float_only(field: str, value: Any) -> float | None:
    """The library takes a whole number here for nothing."""
    if value is not None and not _is_number(value):
        raise refusal(field, value, "a number or null")
    return value if isinstance(value, float) else None


def optional_number(field: str, value: Any) -> int | float | None:
    return None if value is None else positive_number(field, value)


def reduction_factor(field: str, value: Any) -> int | float | dict[str, int | float]:
    """A number, or layer number as string -> number, with an optional "default"."""
    if not isinstance(value, dict):
        return positive_number(field, value)
    for layer in value:
        if layer != "default" and not layer.isdecimal():
            raise refusal(field, layer, 'layer numbers and "default" as keys')
    return {layer: positive_number(f"{field}.{layer}", factor) for layer, factor in sorted(value.items())}


def activation(field: str, value: Any) -> str:
    name = value.lower() if isinstance(value, str) else value
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise refusal(field, value, f"one of {', '.join(sorted(ACTIVATIONS))}")
    return name


def plain_activation(field: str, value: Any) -> str:
    name = activation(field, value)
    if name == "prelu":
        raise refusal(field, value, "an activation without weights of its own")
    return name


def optional_activation(field: str, value: Any) -> str | None:
    """null is the identity."""
    return None if value is None else plain_activation(field, value)


def scaling(field: str, value: Any) -> float | str:
    if value in ("learned", "channel"):
        return str(value)
    if not _is_number(value):
        raise refusal(field, value, 'a number, "learned" or "channel"')
    return float(value)


def residual(field: str, value: Any) -> bool | str:
    if value == "post_add":
        return str(value)
    if not isinstance(value, bool):
        raise refusal(field, value, 'true, false or "post_add"')
    return value


def layers(field: str, value: Any) -> list[int]:
    if not isinstance(value, list) or any(type(layer) is not int or layer < 0 for layer in value):
        raise refusal(field, value, "a list of layer numbers")
    return sorted(set(value))


def all_or_layers(field: str, value: Any) -> str | list[int]:
    return "all" if value == "all" else layers(field, value)


def matrices(field: str, value: Any) -> list[str]:
    """Names of attention matrices, in the one order that fused projections keep."""
    if not isinstance(value, list) or any(name not in ("q", "k", "v") for name in value):
        raise refusal(field, value, 'a list of "q", "k" and "v"')
    return [name for name in ("q", "k", "v") if name in value]


def one_of(*values: str | None) -> Callable[[str, Any], Any]:
    def check(field: str, value: Any) -> Any:
        if not (value is None or isinstance(value, str)) or value not in values:
            raise refusal(field, value, f"one of {', '.join('null' if v is None else v for v in values)}")
        return value

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)
