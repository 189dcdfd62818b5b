"""Tensors of the protocol: a name, a datatype, a shape, and their elements in row-major order."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterd.oip.v2 import inference_pb2 as v2
from server.errors import InvalidInput

BYTES = "BYTES"
NUMBERS: dict[str, np.dtype[Any]] = {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}
CONTENTS = {"INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents", BYTES: "bytes_contents"}
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 32
MAX_CHOICES = 64  # of a multiple-choice question
LENGTH = struct.Struct("<I")

Elements = Sequence[bytes] | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tensor may be at most, before anything is made of it."""

    max_inputs: int
    max_tokens: int

    def check(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        """Raises InvalidInput for a shape that no request can have."""
        if len(shape) > MAX_DIMENSIONS or not all(0 <= size <= MAX_SIZE for size in shape):
            raise InvalidInput(f"input {name[:64]!r} has no shape of a tensor: at most {MAX_DIMENSIONS} dimensions")
        rows = math.prod(shape[:-1]) if datatype != BYTES else math.prod(shape[:1])
        columns = math.prod(shape[-1:]) if datatype != BYTES else math.prod(shape[1:])
        if rows > self.max_inputs:
            raise InvalidInput(f"input {name[:64]!r} is for {rows} inputs, the limit is {self.max_inputs} per request")
        most = max(MAX_CHOICES, self.max_tokens)
        if columns > most:
            raise InvalidInput(f"input {name[:64]!r} has {columns} elements per input, the limit is {most}")


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """`elements` are bytes where the datatype is BYTES, else an array [n]. Raises InvalidInput if they are not as many
    as the shape says."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: Elements

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_DIMENSIONS or any(size < 0 for size in self.shape):
            raise InvalidInput(f"input {self.name[:64]!r}: shape {list(self.shape)[:16]} is no shape of a tensor")
        if math.prod(self.shape) != len(self.elements):
            raise InvalidInput(
                f"input {self.name[:64]!r} has {len(self.elements)} elements, its shape {list(self.shape)} says"
                f" {math.prod(self.shape)}"
            )

    def texts(self) -> list[str]:
        """Elements as text. Raises InvalidInput for what is no UTF-8."""
        if self.datatype != BYTES:
            raise InvalidInput(f"input {self.name!r} is {self.datatype}; send its texts as {BYTES}")
        try:
            return [bytes(element).decode() for element in self.elements]
        except UnicodeDecodeError as error:
            raise InvalidInput(f"input {self.name!r} holds bytes that are no UTF-8 text: {error.reason}") from error

    def rows(self) -> list[list[int]]:
        """Whole numbers by row; a tensor of one dimension is one row. Raises InvalidInput for another datatype."""
        if self.datatype not in ("INT32", "INT64"):
            raise InvalidInput(f"input {self.name!r} is {self.datatype[:16]}; send it as INT64 or INT32")
        if len(self.shape) not in (1, 2):
            raise InvalidInput(f"input {self.name!r} has {len(self.shape)} dimensions; it has 2, inputs and tokens")
        rows: list[list[int]] = np.asarray(self.elements).reshape(-1, self.shape[-1] or 1).tolist()
        return rows


def from_raw(name: str, datatype: str, shape: Iterable[int], data: bytes) -> Tensor:
    """Raises InvalidInput."""
    shape = tuple(shape)
    return Tensor(name, datatype, shape, _parsed(name, datatype, data, math.prod(shape)))


def from_contents(name: str, datatype: str, shape: Iterable[int], contents: v2.InferTensorContents) -> Tensor:
    """Raises InvalidInput."""
    elements = list(getattr(contents, CONTENTS[_known(name, datatype)]))
    return Tensor(name, datatype, tuple(shape), elements if datatype == BYTES else np.array(elements))


def from_json(name: str, datatype: str, shape: Iterable[int], data: Any) -> Tensor:
    """Elements as JSON has them, flat or nested as the shape is. Raises InvalidInput."""
    flat = list(_flat(data, 0))
    if _known(name, datatype) == BYTES:
        if not all(isinstance(element, str) for element in flat):
            raise InvalidInput(f"input {name[:64]!r}: elements of {BYTES} are texts in JSON")
        try:
            return Tensor(name, datatype, tuple(shape), [element.encode() for element in flat])
        except UnicodeEncodeError as error:
            raise InvalidInput(f"input {name[:64]!r} holds half a character: {error.reason}") from error
    if any(isinstance(element, bool) or not isinstance(element, int | float) for element in flat):
        raise InvalidInput(f"input {name[:64]!r}: elements of {datatype} are numbers")
    if datatype != "FP32" and not all(isinstance(element, int) for element in flat):
        raise InvalidInput(f"input {name[:64]!r}: elements of {datatype} are whole numbers")
    try:
        with np.errstate(over="raise"):
            return Tensor(name, datatype, tuple(shape), np.array(flat, NUMBERS[datatype]))
    except (OverflowError, FloatingPointError) as error:
        raise InvalidInput(f"input {name[:64]!r}: an element is too large for {datatype}") from error


def raw(tensor: Tensor) -> bytes:
    """Elements as they travel; of BYTES each behind its length."""
    if tensor.datatype != BYTES:
        return np.asarray(tensor.elements, NUMBERS[tensor.datatype]).tobytes()
    return b"".join(part for element in tensor.elements for part in (LENGTH.pack(len(element)), bytes(element)))


def as_json(tensor: Tensor) -> list[Any]:
    """Elements as JSON has them, flat."""
    if tensor.datatype == BYTES:
        return [bytes(element).decode() for element in tensor.elements]
    values: list[Any] = np.asarray(tensor.elements).ravel().tolist()
    return values


def _parsed(name: str, datatype: str, data: bytes, number: int) -> Elements:
    if _known(name, datatype) == BYTES:
        return _strings(name, data, number)
    kind = NUMBERS[datatype]
    if len(data) % kind.itemsize:
        raise InvalidInput(f"input {name[:64]!r}: {len(data)} bytes are no whole number of {datatype}")
    return np.frombuffer(data, kind)


def _strings(name: str, data: bytes, number: int) -> list[bytes]:
    """One more than `number` at most, which is as wrong as any more."""
    elements: list[bytes] = []
    at = 0
    while at < len(data) and len(elements) <= number:
        if at + LENGTH.size > len(data):
            raise InvalidInput(f"input {name[:64]!r}: {len(data) - at} bytes follow the last element")
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        if length > len(data) - at:
            raise InvalidInput(
                f"input {name[:64]!r}: element {len(elements)} says {length} bytes and {len(data) - at} follow"
            )
        elements.append(data[at : at + length])
        at += length
    return elements


def _known(name: str, datatype: str) -> str:
    if datatype not in CONTENTS:
        raise InvalidInput(f"input {name[:64]!r}: datatype {datatype[:16]!r} is not one of {', '.join(CONTENTS)}")
    return datatype


def _flat(data: Any, depth: int) -> Iterable[Any]:
    if not isinstance(data, list):
        yield data
    elif depth > MAX_DIMENSIONS:
        raise InvalidInput(f"data is nested more than {MAX_DIMENSIONS} deep")
    else:
        for element in data:
            yield from _flat(element, depth + 1)
