"""The flat buffer of an adapter while it is being laid out, and the tensors it is made from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from server.errors import MalformedCheckpoint
from server.primitives import TensorSlice

ALIGNMENT = 16  # elements; a kernel may read any tensor of the buffer in 32-byte vectors


class FlatBuilder:
    """Collects tensors whose concatenation is the buffer. Differentiable: nothing is copied or detached."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.num_elements = 0

    def add(self, tensor: Tensor) -> TensorSlice:
        """Append a tensor, as float32, and zeros up to the next multiple of ALIGNMENT."""
        place = TensorSlice(self.num_elements, tuple(tensor.shape))
        self._append(tensor.to(torch.float32))
        if padding := -self.num_elements % ALIGNMENT:
            self._append(torch.zeros(padding, device=tensor.device))
        return place

    def _append(self, tensor: Tensor) -> None:
        self.tensors.append(tensor)
        self.num_elements += tensor.numel()


class TensorSource:
    """A checkpoint's tensors, each to be taken exactly once, in exactly the expected shape."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)

    def take(self, key: str, *shape: int) -> Tensor:
        """Raises MalformedCheckpoint naming the tensor, its shape and the expected one."""
        tensor = self._left.pop(key, None)
        if tensor is None:
            raise MalformedCheckpoint(
                f"tensor {key} is missing; the configuration expects it with shape {shape}", tensor=key
            )
        if tuple(tensor.shape) != shape:
            raise MalformedCheckpoint(
                f"tensor {key} has shape {tuple(tensor.shape)}, the configuration expects {shape}", tensor=key
            )
        return tensor

    def check_empty(self) -> None:
        """Raises MalformedCheckpoint naming a tensor that nobody took."""
        if self._left:
            key, tensor = min(self._left.items())
            raise MalformedCheckpoint(
                f"tensor {key} of shape {tuple(tensor.shape)} has no place in the configuration"
                f" ({len(self._left)} such tensors)",
                tensor=key,
            )
