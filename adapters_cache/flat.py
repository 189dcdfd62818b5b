"""The flat buffer of an adapter while it is being laid out, and the tensors it is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
    """A checkpoint's tensors as float32, each to be taken exactly once, in exactly the expected shape."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)
        self._shared: dict[str, Tensor] = {}

    def take(self, key: str, *shape: int) -> Tensor:
        """Raises MalformedCheckpoint naming the tensor, its shape and the expected one."""
        tensor = self._left.pop(key, None)
        if tensor is None:
            raise MalformedCheckpoint(
                f"tensor {key} is missing; the configuration expects it with shape {shape}", tensor=key
            )
        _check_shape(key, tensor, shape)
        return tensor.to(torch.float32)

    def share(self, name: str, *shape: int) -> Tensor:
        """Give a tensor of `shared_parameters`, which many modules may read. Raises MalformedCheckpoint."""
        key = f"shared_parameters.{name}"
        if key not in self._shared:
            if key not in self._left:
                raise MalformedCheckpoint(
                    f"tensor {key} is missing, as in files saved from a model without a head;"
                    " save the adapter from a model that has one",
                    tensor=key,
                )
            self._shared[key] = self._left.pop(key)
        _check_shape(key, self._shared[key], shape)
        return self._shared[key].to(torch.float32)

    def keys(self) -> Collection[str]:
        """Those not taken yet."""
        return self._left.keys()

    def check_empty(self) -> None:
        """Raises MalformedCheckpoint naming a tensor that nobody took."""
        if self._left:
            key, tensor = min(self._left.items())
            raise MalformedCheckpoint(
                f"tensor {key} of shape {tuple(tensor.shape)} has no place in the configuration"
                f" ({len(self._left)} such tensors)",
                tensor=key,
            )


def _check_shape(key: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise MalformedCheckpoint(
            f"tensor {key} has shape {tuple(tensor.shape)}, the configuration expects {shape}", tensor=key
        )
