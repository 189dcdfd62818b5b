"""Copies between host and device that nobody waits for, and the one that somebody does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE_BYTES = 16  # pieces begin at multiples of this, so that views of any dtype fit
DTYPES = {"i4": torch.int32, "i8": torch.int64}


def upload(arrays: Sequence[NDArray[Any]], device: torch.device, into: Tensor | None = None) -> list[Tensor]:
    """The arrays as tensors on the device, views of one buffer. Does not wait for the copy.

    Pinned memory comes from an allocator that gives it out again only when copies from it are done.

    into   the buffer, uint8, at least as long as the arrays; a new one where None
    """
    ends = _ends(arrays)
    host = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    flat = host.numpy()
    for array, end in zip(arrays, [0, *ends], strict=False):
        flat[end : end + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if into is None:
        buffer = host.to(device, non_blocking=True)
    else:
        buffer = into
        buffer[: len(host)].copy_(host, non_blocking=True)
    return [_piece(buffer, array, start) for array, start in zip(arrays, [0, *ends], strict=False)]


def num_bytes(arrays: Sequence[NDArray[Any]]) -> int:
    """Of the buffer that holds these arrays."""
    return _ends(arrays)[-1]


def _ends(arrays: Sequence[NDArray[Any]]) -> list[int]:
    sizes = (-(-array.nbytes // PIECE_BYTES) * PIECE_BYTES for array in arrays)
    return list(accumulate(sizes))


def _piece(buffer: Tensor, array: NDArray[Any], start: int) -> Tensor:
    return buffer[start : start + array.nbytes].view(DTYPES[array.dtype.str[1:]]).view(array.shape)


def indices(values: Sequence[int] | NDArray[np.int64], device: torch.device) -> Tensor:
    """[len(values)] int64 on the device. `torch.tensor` would wait for the device, and so does a list as an index."""
    return upload([np.asarray(values, dtype=np.int64)], device)[0]


def download(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host. The call that comes back waits for it, and for nothing issued later."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    done = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> Tensor:
        done.synchronize()
        return pinned.clone()  # results live long, and pinned memory is scarce

    return wait
