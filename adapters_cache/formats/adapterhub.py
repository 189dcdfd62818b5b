"""AdapterHub directories: read one into a `Checkpoint`, write one that AdapterHub's library loads too."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from adapters_cache.families import family_of
from adapters_cache.formats.checkpoint import FUSION, Checkpoint, HeadCheckpoint
from adapters_cache.formats.configs import canonical_config
from adapters_cache.formats.files import DEFAULT_MAX_BYTES, Envelope, Limits, read_tensors
from adapters_cache.formats.fusions import (
    FUSION_CONFIG,
    FUSION_FILES,
    TRAINING_DEFAULTS,
    fusion_file_keys,
    is_fusion,
    read_fusion,
)
from adapters_cache.formats.heads import file_config, head_file_keys, read_head
from adapters_cache.formats.keys import adapter_tensors, drop_aliases, file_keys, with_aliases, without_layers
from adapters_cache.formats.peft import is_peft, read_peft
from adapters_cache.formats.pickles import TIMEOUT_S
from adapters_cache.formats.safe_file import read_json
from adapters_cache.formats.settle import settled
from server.core import BaseInfo
from server.errors import InvalidInput, MalformedCheckpoint

ADAPTER_CONFIG, HEAD_CONFIG = "adapter_config.json", "head_config.json"
ADAPTER_FILES = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_FILES = ("model_head.safetensors", "pytorch_model_head.bin")
VERSION = "adapters.1.3.0"  # of the layout that is written here


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter, a head or a fusion."""
    return (path / ADAPTER_CONFIG).is_file() or (path / HEAD_CONFIG).is_file() or is_fusion(path)


def check_replaceable(folder: Path) -> None:
    """Raises InvalidInput for a folder that holds something else than an adapter: it would be lost."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_adapter(folder))):
        raise InvalidInput(f"{folder} exists and holds no adapter; name a folder that is new, or an adapter's")


def check_file_name(name: str) -> None:
    """Raises InvalidInput for what cannot be the name of an adapter in files: keys of tensors are split at dots."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", name) is None:
        raise InvalidInput(f"adapter name {name[:100]!r} is not up to 128 letters, digits, dashes and underscores")


def read_checkpoint(
    path: Path,
    *,
    name: str | None = None,
    leave_out: Collection[int] = (),
    head_path: Path | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    pickle_timeout_s: float = TIMEOUT_S,
    only_shapes: bool = False,
) -> Checkpoint:
    """Read the adapter and the heads of a directory, either of which may be missing, or the fusion.

    name       what to call it; by default what its own configuration says
    leave_out  layers to drop besides those that the configuration leaves out
    head_path  a directory whose head replaces the adapter's own
    max_bytes  limit for each tensor file
    pickle_timeout_s  for each `.bin` file
    only_shapes  read the headers of safetensors files; their tensors are on the meta device
    Reads files, and may wait for another process: not on the event loop. Raises MalformedCheckpoint, UnsupportedConfig.
    """
    head_path = head_path or path
    limits = Limits(max_bytes, pickle_timeout_s, only_shapes)
    if not is_adapter(path):
        raise MalformedCheckpoint(f"neither {ADAPTER_CONFIG} nor {HEAD_CONFIG} nor {FUSION_CONFIG} is there")
    if not (path / ADAPTER_CONFIG).is_file() and is_fusion(path):
        fusion = read_fusion(path, limits)
        heads = [_read_head(folder, fusion.name, limits) for folder in _head_folders(path, head_path)]
        return replace(_join(fusion, heads), name=name or fusion.name)
    envelope = read_json(path / ADAPTER_CONFIG) if (path / ADAPTER_CONFIG).is_file() else None
    if envelope is not None and is_peft(envelope):
        return read_peft(path, envelope, name=name or path.name, limits=limits)
    adapter = _read_adapter(path, leave_out, limits) if envelope is not None else None
    own_name = adapter.name if adapter else (name or path.name)
    heads = [_read_head(folder, own_name, limits) for folder in _head_folders(path, head_path)]
    found = _join(adapter, heads)
    return _renamed(found, name) if name else found


def _head_folders(path: Path, head_path: Path) -> list[Path]:
    """The adapter's own head, or the one that replaces it, and those the library wrote into sub-folders."""
    inside = sorted(
        folder
        for folder in path.iterdir()
        if (folder / HEAD_CONFIG).is_file() and not (folder / ADAPTER_CONFIG).is_file()
    )
    first = [head_path] if (head_path / HEAD_CONFIG).is_file() else []
    return first + [folder for folder in inside if folder != head_path]


def _join(adapter: Checkpoint | None, found: list[Checkpoint]) -> Checkpoint:
    """The head that answers by default is the first one read, or else the one named like the adapter."""
    result = adapter or found[0]
    for head in found:
        _check_same_base(result, head)
        result = replace(result, base_fingerprint=result.base_fingerprint or head.base_fingerprint)
    heads = [head.head for head in found if head.head is not None]
    if len({head.name for head in heads}) < len(heads):
        raise MalformedCheckpoint("two heads have one name", field="name")
    own = heads[0] if heads else None
    return replace(result, head=own, other_heads=tuple(head for head in heads if head is not own))


def _renamed(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Call the adapter, and the head of its name, something else."""
    head = checkpoint.head
    if head is not None and head.name == checkpoint.name and checkpoint.config is not None:
        head = HeadCheckpoint(name, head.config, head.tensors)
    return replace(checkpoint, name=name, head=head)


def _check_same_base(adapter: Checkpoint, head: Checkpoint) -> None:
    for field in ("model_type", "hidden_size", "base_fingerprint"):
        ours, theirs = getattr(adapter, field), getattr(head, field)
        if ours and theirs and ours != theirs:
            raise MalformedCheckpoint(
                f"{field} is {ours} in {ADAPTER_CONFIG} and {theirs} in {HEAD_CONFIG}", field=field
            )


def _read_adapter(path: Path, leave_out: Collection[int], limits: Limits) -> Checkpoint:
    envelope = Envelope.read(path / ADAPTER_CONFIG)
    name, model_type = envelope.name, envelope.model_type
    # a configuration that cannot be served is refused by name before its tensors are even looked at
    canonical_config(envelope.values, has_invertible=True)
    tensors = adapter_tensors(read_tensors(path, ADAPTER_FILES, limits), model_type, name)
    has_invertible = any(key.startswith("invertible_adapters.") for key in tensors)
    tensors = drop_aliases(tensors)
    config = settled(canonical_config(envelope.values, has_invertible=has_invertible), tensors)
    if leave_out:
        tensors = without_layers(tensors, leave_out)
        config = _leaving_out(config, leave_out)
    return Checkpoint(
        name, model_type, envelope.hidden_size, config, tensors, base_fingerprint=envelope.base_fingerprint
    )


def _leaving_out(config: Mapping[str, Any], layers: Collection[int]) -> dict[str, Any]:
    if "configs" in config:
        return {**config, "configs": [_leaving_out(member, layers) for member in config["configs"]]}
    if "leave_out" not in config:
        return dict(config)
    return {**config, "leave_out": sorted({*config["leave_out"], *layers})}


def _read_head(path: Path, name: str, limits: Limits) -> Checkpoint:
    envelope = Envelope.read(path / HEAD_CONFIG)
    head = read_head(envelope.values, read_tensors(path, HEAD_FILES, limits), name)
    return Checkpoint(head.name, envelope.model_type, envelope.hidden_size, None, {}, head, envelope.base_fingerprint)


def write_checkpoint(path: Path, checkpoint: Checkpoint, base: BaseInfo, dtype: torch.dtype | None = None) -> None:
    """Write an adapter and its heads, or a fusion, as safetensors in AdapterHub's layout, with the base's fingerprint.

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
        "name": checkpoint.name,
    }
    for head in checkpoint.heads:
        _write_head(path if head is checkpoint.head else path / head.name, head, envelope, dtype)
    if checkpoint.config is None:
        return
    config = dict(checkpoint.config)
    if config.get("architecture") == FUSION:
        del config["architecture"]
        envelope |= {"adapter_names": config.pop("members"), "config": {**TRAINING_DEFAULTS, **config}}
        _save(path / FUSION_FILES[0], fusion_file_keys(checkpoint.tensors, family, checkpoint.name), dtype)
        _dump(path / FUSION_CONFIG, envelope)
    else:
        tensors = file_keys(with_aliases(checkpoint.tensors), family, checkpoint.name)
        _save(path / ADAPTER_FILES[0], tensors, dtype)
        _dump(path / ADAPTER_CONFIG, envelope | {"config": config})


def _write_head(path: Path, head: HeadCheckpoint, envelope: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    path.mkdir(exist_ok=True)
    _save(path / HEAD_FILES[0], head_file_keys(head), dtype)
    _dump(path / HEAD_CONFIG, {**envelope, "name": head.name, "config": file_config(head)})


def _save(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    copies = {key: tensor.detach().to("cpu", dtype, copy=True).contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(copies, path, metadata={"format": "pt"})


def _dump(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
