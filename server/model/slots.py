"""The device tensors behind slots. Slot 0 means "no adapter".

A slot is one flat buffer that holds all of an adapter's tensors, laid out as in host memory: placing an adapter is one
copy, and every width, layer set and method fits without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from server.core import Adapter
from server.primitives import AdapterSpec, Affine, Bottleneck, BottleneckStyle, Head, SiteKind, TensorSlice

ALIGNMENT_BYTES = 512  # what device allocators round to; counted, so that the books match the device
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class AffineWeights:
    """weight [out, in] and bias [out] of a Linear, or [H] and [H] of a LayerNorm."""

    weight: Tensor
    bias: Tensor | None

    @property
    def transposed(self) -> Tensor:
        """[in, out]"""
        return self.weight.t()


@dataclass(frozen=True, slots=True, eq=False)
class BottleneckWeights:
    """A bottleneck's tensors, views into its slot: down [R, H], up [H, R]."""

    style: BottleneckStyle
    activation: Activation
    down: AffineWeights
    up: AffineWeights
    norm_before: AffineWeights | None
    norm_after: AffineWeights | None
    gate: AffineWeights | None


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A head's Linears and what follows each of them."""

    head: Head
    layers: tuple[tuple[AffineWeights, Activation | None], ...]


@dataclass(frozen=True, slots=True, eq=False)
class SlotWeights:
    """Everything a slot holds, by site."""

    sites: Mapping[tuple[int, SiteKind], BottleneckWeights]
    head: HeadWeights | None
    order: int  # slots of equal order lie next to each other in a batch


class SlotBank:
    """Slots by index. `write` on the runner thread; `free` anywhere, once no lease needs the slot."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._slots: dict[int, SlotWeights] = {}
        self._orders: dict[object, int] = {}

    def __getitem__(self, slot: int) -> SlotWeights:
        return self._slots[slot]

    def __len__(self) -> int:
        return len(self._slots)

    def slot_bytes(self, adapter: Adapter) -> int:
        """Bytes that a slot for `adapter` takes on the device."""
        size = adapter.spec.num_elements * self._dtype.itemsize
        return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def write(self, slot: int, adapter: Adapter) -> None:
        """Copy an adapter's weights into `slot`."""
        assert slot, "slot 0 means no adapter"
        weights = adapter.weights.to(device=self._device, dtype=self._dtype, non_blocking=True, copy=True)
        self._slots[slot] = self.view(adapter.spec, weights)

    def free(self, slot: int) -> None:
        """Give the slot's memory back. A slot that was never written is fine."""
        self._slots.pop(slot, None)

    def view(self, spec: AdapterSpec, flat: Tensor) -> SlotWeights:
        """The tensors of `spec` as views into `flat` [num_elements]; gradients flow through them."""
        sites = {site: _bottleneck(flat, bottleneck) for site, bottleneck in spec.sites.items()}
        head = _head(flat, spec.head) if spec.head else None
        # Adapters of one style everywhere share elementwise steps, so batches keep them together.
        key = tuple(sorted({repr(weights.style) for weights in sites.values()}))
        return SlotWeights(sites, head, self._orders.setdefault(key, len(self._orders)))


def _take(flat: Tensor, where: TensorSlice) -> Tensor:
    return flat[where.offset : where.offset + where.num_elements].view(where.shape)


def _affine(flat: Tensor, affine: Affine | None) -> AffineWeights | None:
    if affine is None:
        return None
    return AffineWeights(_take(flat, affine.weight), _take(flat, affine.bias) if affine.bias else None)


def _present(flat: Tensor, affine: Affine) -> AffineWeights:
    weights = _affine(flat, affine)
    assert weights is not None
    return weights


def _bottleneck(flat: Tensor, spec: Bottleneck) -> BottleneckWeights:
    slope = _take(flat, spec.activation_weight) if spec.activation_weight else None
    return BottleneckWeights(
        style=spec.style,
        activation=activation(spec.style.activation, slope),
        down=_present(flat, spec.down),
        up=_present(flat, spec.up),
        norm_before=_affine(flat, spec.norm_before),
        norm_after=_affine(flat, spec.norm_after),
        gate=_affine(flat, spec.gate),
    )


def _head(flat: Tensor, head: Head) -> HeadWeights:
    layers = tuple(
        (_present(flat, layer.dense), activation(layer.activation) if layer.activation else None)
        for layer in head.layers
    )
    return HeadWeights(head, layers)


def activation(name: str, slope: Tensor | None = None) -> Activation:
    """The activation a checkpoint names; `slope` is the learned weight of prelu, [1]."""
    if name == "prelu":
        assert slope is not None
        return lambda x: torch.nn.functional.prelu(x, slope)
    if name == "relu":
        return torch.relu
    return ACT2FN["leaky_relu" if name == "leakyrelu" else name]  # type: ignore[no-any-return]
