"""Lowered descriptions as JSON and back: dataclasses as lists of their fields, in order.

`SCHEMA` changes whenever the dataclasses do, so what was written by another version is told apart.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from server.primitives import AdapterSpec

Decode = Callable[[Any], Any]


def dumps(spec: AdapterSpec) -> str:
    return json.dumps(_plain(spec), separators=(",", ":"))


@lru_cache(maxsize=4096)
def loads(text: str) -> AdapterSpec:
    """Adapters of one configuration share a description, which is read once. Raises ValueError."""
    try:
        spec: AdapterSpec = _decoder(AdapterSpec)(json.loads(text))
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"not a description of this version: {error}") from error
    return spec


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return [_plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> Decode:
    arguments = get_args(kind)
    if is_dataclass(kind):
        return _dataclass_decoder(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        [inner] = [argument for argument in arguments if argument is not type(None)]
        decode = _decoder(inner)
        return lambda value: None if value is None else decode(value)
    if origin is tuple:
        return _tuple_decoder(arguments)
    if origin is Mapping:
        key, item = map(_decoder, arguments)
        return lambda pairs: {key(k): item(v) for k, v in pairs}
    return lambda value: value


def _dataclass_decoder(kind: Any) -> Decode:
    hints = get_type_hints(kind)
    decoders = [_decoder(hints[field.name]) for field in fields(kind)]
    return lambda values: kind(*(decode(value) for decode, value in zip(decoders, values, strict=True)))


def _tuple_decoder(arguments: tuple[Any, ...]) -> Decode:
    if arguments[-1] is Ellipsis:
        item = _decoder(arguments[0])
        return lambda values: tuple(map(item, values))
    items = [_decoder(argument) for argument in arguments]
    return lambda values: tuple(decode(value) for decode, value in zip(items, values, strict=True))


def _schema(kind: Any, seen: dict[str, list[str]]) -> dict[str, list[str]]:
    """Fields of every dataclass and values of every enumeration that `kind` is made of."""
    for argument in get_args(kind):
        _schema(argument, seen)
    if isinstance(kind, type) and issubclass(kind, Enum):
        seen[kind.__name__] = [str(member.value) for member in kind]
    elif is_dataclass(kind) and isinstance(kind, type) and kind.__name__ not in seen:
        hints = get_type_hints(kind)
        seen[kind.__name__] = [f"{field.name}: {hints[field.name]}" for field in fields(kind)]
        for hint in hints.values():
            _schema(hint, seen)
    return seen


SCHEMA = hashlib.sha256(json.dumps(_schema(AdapterSpec, {}), sort_keys=True).encode()).hexdigest()[:16]
