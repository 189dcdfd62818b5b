"""Doubles for the parts at either end of the scheduler, and builders of small data. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from server.core import (
    ANYONE,
    Adapter,
    BaseInfo,
    Batch,
    BatchInfo,
    BranchOutput,
    Encoding,
    Manifest,
    Pooling,
    Sample,
    SampleOutput,
    Tenant,
    TokenInput,
    target_of,
)
from server.errors import AdapterdError, AdapterNotFound
from server.primitives import AdapterSpec, Affine, Head, HeadLayer, Task, TensorSlice

TOKEN_TASKS = (Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING)


def make_base(**changes: object) -> BaseInfo:
    facts: dict[str, object] = {
        "name": "tiny",
        "model_type": "bert",
        "hidden_size": 8,
        "num_layers": 2,
        "fingerprint": "f" * 64,
        "max_tokens": 512,
        "vocab_size": 30522,
        "type_vocab_size": 2,
        "num_heads": 2,
        "intermediate_size": 12,
    }
    return BaseInfo(**(facts | changes))  # type: ignore[arg-type]


def make_spec(task: Task = Task.EMBEDDING, labels: Sequence[str] = ()) -> AdapterSpec:
    """A spec with a head for `task`, or without one for embeddings."""
    if task is Task.EMBEDDING:
        return AdapterSpec(sites={}, head=None, num_elements=0)
    dense = Affine(TensorSlice(0, (len(labels), 8)), None)
    head = Head("head", task, (HeadLayer(dense, None),), tuple(labels), task in TOKEN_TASKS, False)
    return AdapterSpec(sites={}, head=head, num_elements=dense.weight.num_elements)


def make_adapter(name: str = "a", spec: AdapterSpec | None = None, size_bytes: int = 100) -> Adapter:
    manifest = Manifest(name, f"digest-{name}", "bottleneck", "bert", 8, size_bytes // 4)
    return Adapter(manifest, spec or make_spec(), weights=None, size_bytes=size_bytes)


def make_encoding(num_tokens: int = 4) -> Encoding:
    ids = tuple(range(1, num_tokens + 1))
    return Encoding(input_ids=ids, token_type_ids=(0,) * num_tokens, source=TokenInput(ids))


def make_sample(
    adapter: Adapter | None = None,
    num_tokens: int = 4,
    *,
    deadline: float | None = None,
    tenant: str = "",
    priority: int = 0,
) -> Sample:
    """A sample of the running event loop."""
    reply: asyncio.Future[SampleOutput] = asyncio.get_running_loop().create_future()
    target = target_of(adapter)
    return Sample(make_encoding(num_tokens), target, Pooling.MEAN, reply, deadline, tenant=tenant, priority=priority)


def make_output(values: ArrayLike = (0.0,), *, queue_s: float = 0.001, compute_s: float = 0.002) -> SampleOutput:
    branch = BranchOutput(np.asarray(values, np.float32))
    return SampleOutput((branch,), BatchInfo(1, 1, 4, 1), queue_s, compute_s)


class FakeTargetLease:
    def __init__(self, adapter: Adapter | None) -> None:
        self.target = target_of(adapter)
        self.names = tuple((adapter.manifest.name if adapter else "base", "") for _ in self.target.branches)
        self.version: tuple[str, str] | None = None
        self.num_releases = 0

    def release(self) -> None:
        self.num_releases += 1
        assert self.num_releases == 1, "a lease is released once"


class FakeAdapters:
    """Stands for `adapters_cache`: every name is ready unless it is in `errors`; "base" is the base alone."""

    def __init__(self) -> None:
        self.errors: dict[str, AdapterdError] = {}
        self.specs: dict[str, AdapterSpec] = {}
        self.leases: list[FakeTargetLease] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def num_leased(self) -> int:
        return sum(lease.num_releases == 0 for lease in self.leases)

    def check(self, expression: str, tenant: Tenant = ANYONE) -> None:
        if isinstance(self.errors.get(expression), AdapterNotFound):
            raise self.errors[expression]

    async def ready(
        self,
        name: str,
        heads: Sequence[str] = (),
        skip_layers: Sequence[int] = (),
        key: str = "",
        tenant: Tenant = ANYONE,
        version: str = "",
    ) -> FakeTargetLease:
        await self.gate.wait()
        if name in self.errors:
            raise self.errors[name]
        adapter = None if name == "base" else make_adapter(name, self.specs.get(name))
        self.leases.append(FakeTargetLease(adapter))
        return self.leases[-1]


class FakeSlotLease:
    def __init__(self, slots: FakeSlots, adapter: Adapter | None, slot: int, is_fresh: bool) -> None:
        self.adapter = adapter
        self.slot = slot
        self.is_fresh = is_fresh
        self._slots = slots
        self._is_released = False

    def release(self, *, failed: bool = False) -> None:
        assert not self._is_released, "a lease is released once"
        self._is_released = True
        self._slots.give_back(self, failed)


class FakeSlots:
    """Stands for residency: `num_slots` slots, least recently leased evicted first; `refused` adapters never fit."""

    def __init__(self, num_slots: int = 1000) -> None:
        self.refused: dict[str, Exception] = {}
        self.on_room: Callable[[], None] = lambda: None
        self.failed: list[str] = []  # digests that were released as failed
        self._free = list(range(num_slots, 0, -1))
        self._resident: dict[str, int] = {}  # digest -> slot, least recently leased first
        self._num_leases: dict[str, int] = {}

    @property
    def num_leased(self) -> int:
        return sum(self._num_leases.values())

    def acquire(self, adapter: Adapter | None) -> FakeSlotLease | None:
        if adapter is None:
            return FakeSlotLease(self, None, 0, is_fresh=False)
        if adapter.manifest.name in self.refused:
            raise self.refused[adapter.manifest.name]
        digest = adapter.digest
        is_fresh = digest not in self._resident
        if is_fresh and not self._make_room():
            return None
        slot = self._free.pop() if is_fresh else self._resident.pop(digest)
        self._resident[digest] = slot
        self._num_leases[digest] = self._num_leases.get(digest, 0) + 1
        return FakeSlotLease(self, adapter, slot, is_fresh)

    def give_back(self, lease: FakeSlotLease, failed: bool) -> None:
        if lease.adapter is None:
            return
        digest = lease.adapter.digest
        self._num_leases[digest] -= 1
        if failed:
            self.failed.append(digest)
        self.on_room()

    def _make_room(self) -> bool:
        if not self._free:
            idle = next((digest for digest in self._resident if not self._num_leases[digest]), None)
            if idle is None:
                return False
            self._free.append(self._resident.pop(idle))
        return True


class FakeRun:
    """Stands for the runner: keeps the batches, answers them while its gate is open, fails as told.

    error      fails every batch
    errors     fail single batches, by their number in order of arrival
    error_of   an error for one sample, or None to answer it
    compute_s  that a batch is said to have taken
    """

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.error: BaseException | None = None
        self.errors: dict[int, BaseException] = {}
        self.error_of: Callable[[Sample], AdapterdError | None] = lambda sample: None
        self.compute_s = 0.002
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_running = 0
        self.max_running = 0
        self._has_started = asyncio.Condition()

    async def __call__(self, batch: Batch) -> list[SampleOutput | AdapterdError]:
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        number = len(self.batches)
        self.batches.append(batch)
        async with self._has_started:
            self._has_started.notify_all()
        try:
            await self.gate.wait()
            if error := self.errors.get(number, self.error):
                raise error
            return [self.error_of(sample) or self.output(batch, sample, self.compute_s) for sample in batch.samples]
        finally:
            self.num_running -= 1

    async def started(self, num_batches: int) -> None:
        """Wait until that many batches have been handed over."""
        async with self._has_started:
            await self._has_started.wait_for(lambda: len(self.batches) >= num_batches)

    @staticmethod
    def output(batch: Batch, sample: Sample, compute_s: float = 0.002) -> SampleOutput:
        """One number: the tokens of the sample, so that a mixed-up answer shows."""
        info = BatchInfo(batch.id, len(batch.samples), batch.num_tokens, batch.num_adapters)
        return SampleOutput((BranchOutput(np.array([sample.num_tokens], np.float32)),), info, 0.001, compute_s)
