"""AdapterHub directories: read one into a `Checkpoint`, write one that AdapterHub's library loads too."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from adapters_cache.families import family_of
from adapters_cache.formats.checkpoint import Checkpoint, HeadCheckpoint
from adapters_cache.formats.configs import canonical_config
from adapters_cache.formats.heads import file_config, head_file_keys, read_head
from adapters_cache.formats.keys import adapter_tensors, drop_aliases, file_keys, with_aliases, without_layers
from adapters_cache.formats.pickles import TIMEOUT_S, read_pickle
from adapters_cache.formats.safe_file import read_json, read_safetensors
from server.config import CacheConfig
from server.core import BaseInfo
from server.errors import InvalidInput, MalformedCheckpoint

ADAPTER_CONFIG, HEAD_CONFIG = "adapter_config.json", "head_config.json"
ADAPTER_FILES = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_FILES = ("model_head.safetensors", "pytorch_model_head.bin")
VERSION = "adapters.1.3.0"  # of the layout that is written here
DEFAULT_MAX_BYTES = CacheConfig().max_adapter_bytes
T = TypeVar("T")


class _Limits(NamedTuple):
    """For each tensor file."""

    max_bytes: int
    pickle_timeout_s: float


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter or a head."""
    return (path / ADAPTER_CONFIG).is_file() or (path / HEAD_CONFIG).is_file()


def read_checkpoint(
    path: Path,
    *,
    name: str | None = None,
    leave_out: Collection[int] = (),
    head_path: Path | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    pickle_timeout_s: float = TIMEOUT_S,
) -> Checkpoint:
    """Read the adapter and the head of a directory; either may be missing.

    name       what to call it; by default what its own configuration says
    leave_out  layers to drop besides those that the configuration leaves out
    head_path  a directory whose head replaces the adapter's own
    max_bytes  limit for each tensor file
    pickle_timeout_s  for each `.bin` file
    Reads files, and may wait for another process: not on the event loop. Raises MalformedCheckpoint, UnsupportedConfig.
    """
    head_path = head_path or path
    limits = _Limits(max_bytes, pickle_timeout_s)
    if not is_adapter(path):
        raise MalformedCheckpoint(f"neither {ADAPTER_CONFIG} nor {HEAD_CONFIG} is there")
    adapter = _read_adapter(path, leave_out, limits) if (path / ADAPTER_CONFIG).is_file() else None
    own_name = adapter.name if adapter else (name or path.name)
    head = _read_head(head_path, own_name, limits) if (head_path / HEAD_CONFIG).is_file() else None
    if head is None:
        assert adapter is not None
        found = adapter
    elif adapter is None:
        found = head
    else:
        _check_same_base(adapter, head)
        fingerprint = adapter.base_fingerprint or head.base_fingerprint
        found = _copy(adapter, adapter.name, head.head, fingerprint)
    return _copy(found, name or found.name, found.head, found.base_fingerprint)


def _copy(found: Checkpoint, name: str, head: HeadCheckpoint | None, fingerprint: str) -> Checkpoint:
    return Checkpoint(name, found.model_type, found.hidden_size, found.config, found.tensors, head, fingerprint)


def _check_same_base(adapter: Checkpoint, head: Checkpoint) -> None:
    for field in ("model_type", "hidden_size", "base_fingerprint"):
        ours, theirs = getattr(adapter, field), getattr(head, field)
        if ours and theirs and ours != theirs:
            raise MalformedCheckpoint(
                f"{field} is {ours} in {ADAPTER_CONFIG} and {theirs} in {HEAD_CONFIG}", field=field
            )


def _read_adapter(path: Path, leave_out: Collection[int], limits: _Limits) -> Checkpoint:
    envelope = read_json(path / ADAPTER_CONFIG)
    name = _field(envelope, "name", str, ADAPTER_CONFIG)
    model_type = _field(envelope, "model_type", str, ADAPTER_CONFIG)
    hidden_size = _field(envelope, "hidden_size", int, ADAPTER_CONFIG)
    # a configuration that cannot be served is refused by name before its tensors are even looked at
    canonical_config(envelope, has_invertible=True)
    tensors = adapter_tensors(_read_tensors(path, ADAPTER_FILES, limits), model_type, name)
    has_invertible = any(key.startswith("invertible_adapters.") for key in tensors)
    config = canonical_config(envelope, has_invertible=has_invertible)
    tensors = drop_aliases(tensors, **_alias_flags(config))
    if leave_out:
        config["leave_out"] = sorted({*config["leave_out"], *leave_out})
        tensors = without_layers(tensors, leave_out)
    return Checkpoint(name, model_type, hidden_size, config, tensors, None, _fingerprint(envelope))


def _read_head(path: Path, name: str, limits: _Limits) -> Checkpoint:
    envelope = read_json(path / HEAD_CONFIG)
    model_type = _field(envelope, "model_type", str, HEAD_CONFIG)
    hidden_size = _field(envelope, "hidden_size", int, HEAD_CONFIG)
    head = read_head(envelope, _read_tensors(path, HEAD_FILES, limits), name)
    return Checkpoint(head.name, model_type, hidden_size, None, {}, head, _fingerprint(envelope))


def _read_tensors(path: Path, names: tuple[str, str], limits: _Limits) -> dict[str, Tensor]:
    safe, pickled = (path / name for name in names)
    if safe.exists():
        return read_safetensors(safe, limits.max_bytes)
    if pickled.exists():
        return read_pickle(pickled, limits.max_bytes, limits.pickle_timeout_s)
    raise MalformedCheckpoint(f"there is a configuration, but neither {names[0]} nor {names[1]}", file=names[0])


def _field(envelope: Mapping[str, Any], field: str, kind: type[T], file: str) -> T:
    value = envelope.get(field)
    if type(value) is not kind or not value:
        raise MalformedCheckpoint(f"{field} in {file} is {value!r}, expected a {kind.__name__}", field=field)
    return value


def _fingerprint(envelope: Mapping[str, Any]) -> str:
    value = envelope.get("base_fingerprint", "")
    if not isinstance(value, str):
        raise MalformedCheckpoint(f"base_fingerprint is {value!r}, expected text", field="base_fingerprint")
    return value


def _alias_flags(config: Mapping[str, Any]) -> dict[str, bool]:
    return {"ln_before": config["ln_before"], "prelu": config["non_linearity"] == "prelu"}


def write_checkpoint(path: Path, checkpoint: Checkpoint, base: BaseInfo, dtype: torch.dtype | None = None) -> None:
    """Write an adapter and its head as safetensors in AdapterHub's layout, marked with the base's fingerprint.

    dtype  what to store the weights as; by default as they are
    Raises InvalidInput for a name with a dot, which the library cannot load.
    """
    family = family_of(checkpoint.model_type)
    if "." in checkpoint.name:
        raise InvalidInput(f"adapter name {checkpoint.name!r} has a dot, which checkpoint keys cannot hold")
    path.mkdir(parents=True, exist_ok=True)
    envelope = {
        "model_type": checkpoint.model_type,
        "model_name": base.name,
        "model_class": family.model_class,
        "hidden_size": checkpoint.hidden_size,
        "version": VERSION,
        "base_fingerprint": base.fingerprint,
    }
    if checkpoint.head is not None:
        _save(path / HEAD_FILES[0], head_file_keys(checkpoint.head), dtype)
        config = file_config(checkpoint.head)
        _dump(path / HEAD_CONFIG, envelope | {"name": checkpoint.head.name, "config": config})
    if checkpoint.config is not None:
        tensors = with_aliases(checkpoint.tensors, **_alias_flags(checkpoint.config))
        _save(path / ADAPTER_FILES[0], file_keys(tensors, family.prefix, checkpoint.name), dtype)
        _dump(path / ADAPTER_CONFIG, envelope | {"name": checkpoint.name, "config": dict(checkpoint.config)})


def _save(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    copies = {key: tensor.detach().to("cpu", dtype, copy=True).contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(copies, path, metadata={"format": "pt"})


def _dump(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
