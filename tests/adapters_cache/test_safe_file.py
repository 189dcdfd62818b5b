from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters_cache.formats.safe_file import parse_json, read_json, read_safetensors, read_shapes
from server.errors import MalformedCheckpoint

MANY = 1 << 20


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def test_good_file_is_read(good: Path) -> None:
    assert torch.equal(read_safetensors(good, MANY)["a"], torch.arange(6.0).view(2, 3))


def test_shapes_are_read_without_values(tmp_path: Path) -> None:
    dtypes = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
    save_file({name: torch.zeros(2, 3, dtype=dtype) for name, dtype in dtypes.items()}, tmp_path / "x")
    shapes = read_shapes(tmp_path / "x", MANY)
    assert {name: tensor.dtype for name, tensor in shapes.items()} == dtypes
    assert all(tensor.is_meta and tensor.shape == (2, 3) for tensor in shapes.values())


@pytest.mark.parametrize("read", [read_safetensors, read_shapes])
@pytest.mark.parametrize("kept", [0, 7, 20, -1])
def test_truncated_file_is_malformed(good: Path, kept: int, read: Callable[[Path, int], object]) -> None:
    good.write_bytes(good.read_bytes()[:kept])
    with pytest.raises(MalformedCheckpoint, match="truncated"):
        read(good, MANY)


@pytest.mark.parametrize("read", [read_safetensors, read_shapes])
def test_left_over_bytes_are_malformed(good: Path, read: Callable[[Path, int], object]) -> None:
    good.write_bytes(good.read_bytes() + b"\0" * 8)
    with pytest.raises(MalformedCheckpoint, match="left over"):
        read(good, MANY)


def test_shapes_that_no_tensor_can_have_are_malformed(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}
    with pytest.raises(MalformedCheckpoint):
        read_shapes(write(tmp_path / "x", {"a": entry}), MANY)


def test_file_over_the_limit_names_both_sizes(good: Path) -> None:
    size = good.stat().st_size
    with pytest.raises(MalformedCheckpoint, match=rf"{size} bytes, the limit is {size - 1}"):
        read_safetensors(good, size - 1)


def test_header_over_one_mebibyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", MANY + 1))
    with pytest.raises(MalformedCheckpoint, match="limit is 1048576"):
        read_safetensors(tmp_path / "x", MANY)


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    header = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(4097)}
    with pytest.raises(MalformedCheckpoint, match="4097 tensors, the limit is 4096"):
        read_safetensors(write(tmp_path / "x", header), MANY)


def test_key_that_appears_twice_is_refused(tmp_path: Path) -> None:
    entry = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    path = write(tmp_path / "x", b'{"a":' + entry + b',"a":' + entry + b"}", b"\0" * 4)
    with pytest.raises(MalformedCheckpoint, match="'a' appears twice"):
        read_safetensors(path, MANY)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_tensors_that_are_not_floating_point_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"ids": torch.ones(2, dtype=dtype)}, tmp_path / "x")
    with pytest.raises(MalformedCheckpoint, match="ids.*dtype"):
        read_safetensors(tmp_path / "x", MANY)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_nan_or_infinity_names_the_tensor(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    save_file({"fine": torch.ones(2), "bad.one": torch.tensor([1.0, value], dtype=dtype)}, tmp_path / "x")
    with pytest.raises(MalformedCheckpoint, match="bad.one"):
        read_safetensors(tmp_path / "x", MANY)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": {}, "shape": [1], "data_offsets": [0, 4]},
        "text",
    ],
)
def test_broken_entry_is_malformed(tmp_path: Path, entry: object) -> None:
    with pytest.raises(MalformedCheckpoint):
        read_safetensors(write(tmp_path / "x", {"a": entry}, b"\0" * 4), MANY)


def test_overlapping_tensors_are_malformed(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(MalformedCheckpoint):
        read_safetensors(write(tmp_path / "x", {"a": entry, "b": entry}, b"\0" * 4), MANY)


def test_errors_tell_no_path(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MalformedCheckpoint) as caught:
            read_safetensors(path, MANY)
        assert str(tmp_path.parent) not in caught.value.message


def test_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MalformedCheckpoint, match="not a regular file"):
        read_safetensors(tmp_path / "pipe", MANY)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"a":NaN}', b'{"a":1,"a":2}', b"\xff", b"[" * 100_000])
def test_bad_json_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedCheckpoint):
        parse_json(text, "x.json")


def test_json_over_the_limit_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(" " * (MANY + 1))
    with pytest.raises(MalformedCheckpoint, match="limit"):
        read_json(tmp_path / "c.json")
