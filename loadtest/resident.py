"""A base with many random adapters on the device, and batches over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from loadtest.bench import batch_of, random_adapter, run_all
from loadtest.device import resident_bytes
from server.config import ModelConfig
from server.core import Adapter, Encoding, target_of
from server.memory import pages
from server.metrics import Metrics
from server.model.base import load_base
from server.model.runner import Runner
from server.model.slots import SlotBank

NUM_BUILT = 8  # of each method, as a server builds them; the others are copies with random weights of their own


@dataclass(frozen=True, slots=True)
class Memory:
    """What `num_adapters` took on the device; on a CPU host copy and slot are the same bytes."""

    num_adapters: int
    resident_bytes: int
    weights_bytes: int

    @property
    def ratio(self) -> float:
        return self.resident_bytes / self.weights_bytes


class Resident:
    """The engine without wire and queue."""

    def __init__(self, source: str, device: str, dtype: str) -> None:
        self.base = load_base(ModelConfig(base=source, device=device, dtype=dtype))
        self._bank = SlotBank(self.base.device, self.base.dtype)
        self._runner = Runner(self.base, self._bank, Metrics())
        self._slots: dict[str, int] = {}
        self._adapters: dict[str, list[Adapter]] = {}
        self.memory: Memory | None = None  # of the most adapters that were placed at once

    def adapters(self, method: str, count: int) -> list[Adapter]:
        """The first `count` of a method, placed if need be."""
        own = self._adapters.setdefault(method, [])
        missing = count - len(own)
        before = resident_bytes(self.base.device)
        while len(own) < count:
            own.append(self._place(self._made(method, own)))
        if missing > (self.memory.num_adapters if self.memory else NUM_BUILT):
            size = own[0].spec.num_elements * self.base.dtype.itemsize
            self.memory = Memory(missing, resident_bytes(self.base.device) - before, missing * size)
        return own[:count]

    def _made(self, method: str, own: Sequence[Adapter]) -> Adapter:
        seed = len(own)
        if seed < NUM_BUILT:
            return random_adapter(self.base, seed, method)
        like = own[seed % NUM_BUILT]
        generator = torch.Generator().manual_seed(seed)
        weights = pages(like.spec.num_elements, self.base.dtype).normal_(0, 0.02, generator=generator)
        return replace(like, manifest=replace(like.manifest, digest=f"{method}-{seed}"), weights=weights)

    def _place(self, adapter: Adapter) -> Adapter:
        slot = len(self._slots) + 1
        self._slots[adapter.digest] = slot
        self._bank.write(slot, adapter)
        return replace(adapter, weights=None)  # what counts as resident is the slot, on a CPU the host's own copy

    def run(self, batches: Sequence[Sequence[Encoding]], adapters: Sequence[Adapter | None]) -> None:
        """Every batch, one after the other; `adapters` are those of all samples in order."""
        given = iter(adapters)
        run_all(
            self._runner,
            (batch_of([(text, target_of(next(given))) for text in texts], self._slots) for texts in batches),
        )
