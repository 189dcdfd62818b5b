"""The device tensors behind slots. Slot 0 means "no adapter".

A slot is one flat buffer that holds all of an adapter's tensors, laid out as in host memory: placing an adapter is one
copy, and every width, layer set and method fits without padding. On a GPU the copy runs beside compute, and only
batches that use the slot wait for it. On a CPU there is nothing to copy: a slot is the host tier's own buffer, which
lives until both have let go of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from mmap import PAGESIZE

import torch
from torch import Tensor

from server.core import Adapter
from server.model.streams import Mark, Streams, streams
from server.model.weights import SlotWeights, view
from server.primitives import AdapterSpec

# What memory comes in; counted, so that the books match the device.
CUDA_ALIGNMENT_BYTES = 512


class SlotBank:
    """Slots by index. `write` and `settle` on the runner thread; `free` anywhere, once no lease needs the slot."""

    def __init__(self, device: torch.device, dtype: torch.dtype, order: Streams | None = None) -> None:
        self._device = device
        self._dtype = dtype
        self._streams = order or streams(device)
        self._slots: dict[int, SlotWeights] = {}
        self._writes: dict[int, Mark] = {}  # copies that no batch has waited for yet
        self._orders: dict[object, int] = {}

    def __getitem__(self, slot: int) -> SlotWeights:
        return self._slots[slot]

    def __len__(self) -> int:
        return len(self._slots)

    def slot_bytes(self, adapter: Adapter) -> int:
        """Bytes that a slot for `adapter` takes on the device."""
        size = adapter.spec.num_elements * self._dtype.itemsize
        unit = CUDA_ALIGNMENT_BYTES if self._device.type == "cuda" else PAGESIZE
        return -(-size // unit) * unit

    def write(self, slot: int, adapter: Adapter) -> None:
        """Bring an adapter's weights, which nobody changes any more, into `slot`; who reads it calls `settle` first."""
        assert slot, "slot 0 means no adapter"
        with self._streams.copying():
            flat = self._copied(adapter.weights)
            written = self._streams.mark()
        self._streams.lend(flat)
        self._slots[slot] = view(adapter.spec, flat, self._order(adapter.spec))
        if written is not None:
            self._writes[slot] = written

    def settle(self, slots: Iterable[int]) -> None:
        """Compute issued from now on finds these slots written."""
        for slot in slots:
            if (written := self._writes.pop(slot, None)) is not None:
                self._streams.wait(written)

    def free(self, slot: int) -> None:
        """Give the slot's memory back. A slot that was never written is fine."""
        self._slots.pop(slot, None)
        self._writes.pop(slot, None)

    def _copied(self, weights: Tensor) -> Tensor:
        """The weights on the device. Through pinned memory on their way to a GPU: the host waits for any other copy."""
        if self._device.type == "cpu":
            return weights.to(self._dtype)
        if weights.dtype is not self._dtype or not weights.is_pinned():
            staged = torch.empty(weights.shape, dtype=self._dtype, pin_memory=self._device.type == "cuda")
            weights = staged.copy_(weights)
        return weights.to(device=self._device, non_blocking=True)

    def _order(self, spec: AdapterSpec) -> int:
        """Adapters of one style everywhere share elementwise steps, so batches keep them together."""
        key = tuple(sorted({repr(bottleneck.style) for bottleneck in spec.sites.values()}))
        return self._orders.setdefault(key, len(self._orders))
