"""The shape of a base, from its configuration and the headers of its files. No weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel

from server.core import BaseInfo
from server.errors import InvalidInput
from server.model.base import attention_of, describe, family_for

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # behind either name where the weights are in several files


@dataclass(frozen=True, slots=True)
class Outline:
    """A base that is not loaded; its `info` has no fingerprint, for only weights have one."""

    info: BaseInfo
    num_parameters: int


def outline(folder: Path, name: str, tokenizer: Path | None) -> Outline:
    """What `load_base` would find in a folder.

    Raises InvalidInput where its files cannot be read, UnsupportedConfig where its family is not served.
    """
    try:
        hf_config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{folder / 'config.json'} cannot be read: {_line(error)}") from error
    family = family_for(hf_config)
    names = weight_names(folder)
    with torch.device("meta"):
        model: Any = AutoModel.from_config(hf_config, attn_implementation=attention_of(family))  # type: ignore[no-untyped-call]
    if names and not any("pooler." in name for name in names):
        model.pooler = None  # as load_base has it
    return Outline(describe(name, model, tokenizer, ""), sum(p.numel() for p in model.parameters()))


def weight_names(folder: Path) -> set[str]:
    """The keys of all tensors; of pickled files, whose header is the file, none. Raises InvalidInput."""
    for name, is_safe in ((SAFE, True), (PICKLED, False)):
        paths = _files(folder, name)
        if not paths:
            continue
        if missing := [path.name for path in paths if not path.is_file()]:
            raise InvalidInput(f"{folder} lacks {', '.join(missing[:3])}, which {name}{INDEX} names")
        return {key for path in paths for key in _keys(path)} if is_safe else set()
    raise InvalidInput(f"{folder} holds no weights: neither {SAFE} nor {PICKLED}")


def _files(folder: Path, name: str) -> list[Path]:
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}{INDEX}"
    if not index.is_file():
        return []
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [folder / shard for shard in sorted(set(shards.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{index} cannot be read: {_line(error)}") from error


def _keys(path: Path) -> list[str]:
    """Of a file that is as long as its header says."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{path} cannot be read, it may be cut off: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
