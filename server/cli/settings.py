"""The server's configuration from a TOML file, overridden by flags.

[model]
base = "minilm"

[cache]
adapters = ["examples/adapters"]
device_bytes = 268435456
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from server.config import ApiConfig, CacheConfig, ModelConfig, SchedulerConfig, ServerConfig
from server.errors import InvalidInput

SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "api": ApiConfig,
}
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
Tables = dict[str, dict[str, Any]]
Section = TypeVar("Section")


def load_config(path: Path | None, overrides: Mapping[str, Any], assignments: Sequence[str] = ()) -> ServerConfig:
    """The file's values, then `assignments` ("cache.host_bytes=1048576"), then `overrides` ("api.port": 0).

    An override of None is one that was not given. Raises InvalidInput with the key and the known ones.
    """
    tables = _read(path) if path else {}
    for assignment in assignments:
        key, value = _parse(assignment)
        _set(tables, key, value)
    for key, value in overrides.items():
        if value is not None:
            _set(tables, key, value)
    return ServerConfig(**{name: _section(name, SECTIONS[name], table) for name, table in _known(tables)})


def _read(path: Path) -> Tables:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(
            f"configuration {path} cannot be read: {error.strerror}; name a TOML file with --config"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"configuration {path}: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InvalidInput(f"{name!r} stands outside of a section; known sections: {', '.join(SECTIONS)}")
    return tables


def _parse(assignment: str) -> tuple[str, Any]:
    """ "cache.host_bytes=1048576" -> its key and the value as TOML reads it; a bare word is a string."""
    key, separator, text = assignment.partition("=")
    if not separator:
        raise InvalidInput(f"--set {assignment!r} is not of the form section.key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), text.strip()


def _set(tables: Tables, key: str, value: Any) -> None:
    section, separator, name = key.partition(".")
    if not separator:
        raise InvalidInput(f"{key!r} is not of the form section.key; known sections: {', '.join(SECTIONS)}")
    tables.setdefault(section, {})[name] = value


def _known(tables: Tables) -> list[tuple[str, dict[str, Any]]]:
    for name in tables:
        if name not in SECTIONS:
            raise InvalidInput(f"unknown section [{name}]; known: {', '.join(SECTIONS)}")
    return list(tables.items())


def _section(section: str, kind: type[Section], table: dict[str, Any]) -> Section:
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            raise InvalidInput(f"unknown key {section}.{name}; known: {', '.join(known)}")
    return kind(**{name: _typed(f"{section}.{name}", hints[name], value) for name, value in table.items()})


def _typed(key: str, hint: Any, value: Any) -> Any:
    """`value` as its field's type. The fields are str, int, float, bool and tuples of paths or texts."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint == tuple[Path, ...]:
        values = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, str | Path) for item in values):
            return tuple(Path(item) for item in values)
    elif hint == tuple[str, ...]:
        values = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, str) for item in values):
            return tuple(values)
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, hint) and not isinstance(value, bool):
        return value
    raise InvalidInput(f"{key} = {value!r} is not {WORDS.get(hint, 'a list of texts')}")
