"""PEFT directories: read one into a `Checkpoint`. Its names depend on the base's family, which lowering knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.files import Limits, read_safe
from adapters_cache.formats.peft_fields import canonical_peft
from adapters_cache.formats.pickles import read_pickle
from server.errors import MalformedCheckpoint

SAFE, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
WRAPPERS = ("base_model.model.", "base_model.")  # what the library wraps the model in; the second for prompt learning


def is_peft(envelope: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` is PEFT's."""
    return "peft_type" in envelope


def read_peft(path: Path, envelope: Mapping[str, Any], *, name: str, limits: Limits) -> Checkpoint:
    """Read a directory whose configuration is `envelope`.

    The checkpoint's `model_type` is empty and its `hidden_size` 0, because PEFT does not write them down; its tensors
    keep the full names of their modules, and those of a head are among them.
    Raises MalformedCheckpoint, UnsupportedConfig.
    """
    config = canonical_peft(envelope)  # refused before its tensors are looked at
    return Checkpoint(name, "", 0, config, _names(_read(path, limits)))


def _read(path: Path, limits: Limits) -> dict[str, Tensor]:
    if (path / SAFE).exists():
        return read_safe(path / SAFE, limits)
    if (path / PICKLED).exists():
        return read_pickle(path / PICKLED, limits.max_bytes, limits.pickle_timeout_s)
    raise MalformedCheckpoint(f"there is a configuration, but neither {SAFE} nor {PICKLED}", file=SAFE)


def _names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full module names, without the library's wrappers and adapter names."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = next((key.removeprefix(wrapper) for wrapper in WRAPPERS if key.startswith(wrapper)), key)
        name = name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")  # 0.9 to 0.12
        if name in result:
            raise MalformedCheckpoint(f"tensor {name} is there twice, as {key} too", tensor=key)
        result[name] = tensor
    return result
