"""What every kind of AdapterHub directory has: a JSON envelope and one tensor file in either of two forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from adapters_cache.formats.pickles import TIMEOUT_S, read_pickle
from adapters_cache.formats.safe_file import read_json, read_safetensors, read_shapes
from server.config import CacheConfig
from server.errors import MalformedCheckpoint

DEFAULT_MAX_BYTES = CacheConfig().max_adapter_bytes
T = TypeVar("T")


class Limits(NamedTuple):
    """For each tensor file.

    only_shapes   leave the weights where they are, but for `.bin` files, which cannot be read in part
    """

    max_bytes: int = DEFAULT_MAX_BYTES
    pickle_timeout_s: float = TIMEOUT_S
    only_shapes: bool = False


@dataclass(frozen=True, slots=True)
class Envelope:
    """A configuration file: whom it is for, and all its values."""

    file: str
    values: Mapping[str, Any]
    model_type: str
    hidden_size: int
    base_fingerprint: str

    @classmethod
    def read(cls, path: Path) -> Envelope:
        """Raises MalformedCheckpoint naming the field."""
        values, file = read_json(path), path.name
        model_type, hidden_size = _field(values, "model_type", str, file), _field(values, "hidden_size", int, file)
        return cls(file, values, model_type, hidden_size, _fingerprint(values))

    @property
    def name(self) -> str:
        """The name in the keys of its tensors. Raises MalformedCheckpoint."""
        return _field(self.values, "name", str, self.file)


def _field(values: Mapping[str, Any], field: str, kind: type[T], file: str) -> T:
    value = values.get(field)
    if type(value) is not kind or not value:
        raise MalformedCheckpoint(f"{field} in {file} is {value!r}, expected a {kind.__name__}", field=field)
    return value


def _fingerprint(values: Mapping[str, Any]) -> str:
    value = values.get("base_fingerprint", "")
    if not isinstance(value, str):
        raise MalformedCheckpoint(f"base_fingerprint is {value!r}, expected text", field="base_fingerprint")
    return value


def read_tensors(path: Path, names: tuple[str, str], limits: Limits) -> dict[str, Tensor]:
    """Read the safetensors file or, where there is none, the pickle. Raises MalformedCheckpoint."""
    safe, pickled = (path / name for name in names)
    if safe.exists():
        return read_safe(safe, limits)
    if pickled.exists():
        return read_pickle(pickled, limits.max_bytes, limits.pickle_timeout_s)
    raise MalformedCheckpoint(f"there is a configuration, but neither {names[0]} nor {names[1]}", file=names[0])


def read_safe(path: Path, limits: Limits) -> dict[str, Tensor]:
    """Read a safetensors file, or its header. Raises MalformedCheckpoint."""
    return (read_shapes if limits.only_shapes else read_safetensors)(path, limits.max_bytes)
