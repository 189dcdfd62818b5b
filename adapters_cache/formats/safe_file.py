"""Read tensor files that nobody has vouched for: every bound is checked before the bytes are trusted."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from server.config import MIB
from server.errors import MalformedCheckpoint

MAX_HEADER_BYTES = MIB
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8
MAX_CONFIG_BYTES = MIB
MAX_JSON_DEPTH = 32  # what is deeper parses, and then overflows the stack of whoever shows it
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`. Raises MalformedCheckpoint."""
    return _read(path, max_bytes, max_bytes + 1)[0]


def _read(path: Path, max_bytes: int, num_bytes: int) -> tuple[bytes, int]:
    """The first `num_bytes` of a file, and how many it has."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise MalformedCheckpoint(f"{path.name} is not a regular file", file=path.name)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(num_bytes) if status.st_size <= max_bytes else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MalformedCheckpoint(f"{path.name} cannot be read: {error.strerror}", file=path.name) from error
    size = max(status.st_size, len(data))
    if size > max_bytes:
        raise MalformedCheckpoint(
            f"{path.name} has {size} bytes, the limit is {max_bytes}; raise max_adapter_bytes to serve it",
            file=path.name,
        )
    return data, size


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises MalformedCheckpoint."""
    return parse_json(read_bytes(path, MAX_CONFIG_BYTES), path.name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object. Refused are duplicate keys, NaN, Infinity, surrogates and what is nested too deep.

    Raises MalformedCheckpoint.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_parsed(value)
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpoint(f"{name} is not valid JSON: {error}", file=name) from error
    if not isinstance(value, dict):
        raise MalformedCheckpoint(f"{name} holds a {type(value).__name__}, not an object", file=name)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} appears twice")
    return result


def _check_parsed(value: Any) -> None:
    """Raises ValueError for what JSON can say and nobody could be told of."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        for text in level:
            if isinstance(text, str):
                text.encode()  # half of a surrogate pair cannot be
        level = [child for node in level for child in _children(node)]
    if level:
        raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep")


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return (*node, *node.values())
    return node if isinstance(node, list) else ()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def read_safetensors(path: Path, max_bytes: int) -> dict[str, Tensor]:
    """Read a safetensors file of finite floating point tensors. Raises MalformedCheckpoint."""
    data = read_bytes(path, max_bytes)
    _check_header(data, len(data), path.name)
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise MalformedCheckpoint(f"{path.name} is not a safetensors file: {error}", file=path.name) from error
    check_finite(tensors, path.name)
    return tensors


def read_shapes(path: Path, max_bytes: int) -> dict[str, Tensor]:
    """As `read_safetensors`, from the header alone: tensors on the meta device, which have no values.

    Raises MalformedCheckpoint.
    """
    data, size = _read(path, max_bytes, 8 + MAX_HEADER_BYTES)
    header = _check_header(data, size, path.name)
    try:
        return {
            key: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
            for key, entry in header.items()
        }
    except (RuntimeError, TypeError) as error:  # of sizes that no tensor can have
        raise MalformedCheckpoint(f"{path.name} is not a safetensors file: {error}", file=path.name) from error


def check_finite(tensors: dict[str, Tensor], name: str) -> None:
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise MalformedCheckpoint(f"tensor {key} in {name} holds NaN or Inf", file=name, tensor=key)


def _check_header(data: bytes, size: int, name: str) -> dict[str, Any]:
    """Give the header at the beginning of a file of `size` bytes, without its metadata."""
    if len(data) < 8:
        raise MalformedCheckpoint(f"{name} is truncated: {len(data)} bytes", file=name)
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise MalformedCheckpoint(
            f"the header of {name} has {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}", file=name
        )
    if len(data) < 8 + header_bytes:
        raise MalformedCheckpoint(f"{name} is truncated inside its header", file=name)
    header = parse_json(data[8 : 8 + header_bytes], f"the header of {name}")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise MalformedCheckpoint(f"{name} has {len(header)} tensors, the limit is {MAX_TENSORS}", file=name)
    end = 0
    for key, entry in header.items():
        end = max(end, _check_entry(key, entry, name))
    if end != size - 8 - header_bytes:
        raise MalformedCheckpoint(
            f"{name} is truncated or has bytes left over: {size - 8 - header_bytes} bytes of data,"
            f" its header describes {end}",
            file=name,
        )
    return header


def _check_entry(key: str, entry: Any, name: str) -> int:
    """Give the offset behind the tensor's last byte."""
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise MalformedCheckpoint(
            f"tensor {key} in {name} has dtype {dtype}, expected one of {', '.join(ITEM_BYTES)}",
            file=name,
            tensor=key,
        )
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and len(shape) <= MAX_DIMENSIONS):
        raise MalformedCheckpoint(f"tensor {key} in {name} has a broken header entry", file=name, tensor=key)
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise MalformedCheckpoint(
            f"tensor {key} in {name} of shape {tuple(shape)} and dtype {dtype} cannot have"
            f" {offsets[1] - offsets[0]} bytes",
            file=name,
            tensor=key,
        )
    return int(offsets[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
