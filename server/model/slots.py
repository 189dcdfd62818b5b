"""The device tensors behind slots. Slot 0 means "no adapter".

A slot is one flat buffer that holds all of an adapter's tensors, laid out as in host memory: placing an adapter is one
copy, and every width, layer set and method fits without padding.
"""

from __future__ import annotations

import torch

from server.core import Adapter
from server.model.weights import SlotWeights, view
from server.primitives import AdapterSpec

ALIGNMENT_BYTES = 512  # what device allocators round to; counted, so that the books match the device


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
        flat = adapter.weights.to(device=self._device, dtype=self._dtype, non_blocking=True, copy=True)
        self._slots[slot] = view(adapter.spec, flat, self._order(adapter.spec))

    def free(self, slot: int) -> None:
        """Give the slot's memory back. A slot that was never written is fine."""
        self._slots.pop(slot, None)

    def _order(self, spec: AdapterSpec) -> int:
        """Adapters of one style everywhere share elementwise steps, so batches keep them together."""
        key = tuple(sorted({repr(bottleneck.style) for bottleneck in spec.sites.values()}))
        return self._orders.setdefault(key, len(self._orders))
