"""Proof of an adapter on the spot: what the engine answers, alone and in a mixed batch, against a plain forward pass.

The plain pass is a second copy of the base with the reference kernels, one sample per batch.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from adapters_cache.adapters import Adapters
from adapters_cache.compositions import Compositions
from adapters_cache.residency import Residency
from server.composition import Leaf, Node, Split
from server.config import CacheConfig, ModelConfig, SchedulerConfig
from server.core import (
    Adapter,
    BaseInfo,
    Batch,
    Encoding,
    Pooling,
    Sample,
    SampleOutput,
    SlotLease,
    Target,
    TokenInput,
    target_of,
)
from server.difference import difference
from server.errors import AdapterdError, AdapterRefused
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.results import num_positions
from server.scheduler.scheduler import Scheduler

LENGTHS = (3, 8, 17, 30)  # tokens of the probes, where the base takes as many
FIRST_TOKEN = 5  # those before are special in most vocabularies


class NotProven(AdapterRefused):
    """It loads, and does not answer as its plain forward pass does."""


class Engine(Protocol):
    async def submit(self, sample: Sample) -> SampleOutput: ...


@dataclass(slots=True)
class _Lease:
    """A slot that is written for one batch."""

    adapter: Adapter | None
    slot: int
    is_fresh: bool = True

    def release(self, *, failed: bool = False) -> None:
        pass


class Plain:
    """The second copy of a base. It answers one sample at a time and keeps no adapter."""

    def __init__(self, base: Base) -> None:
        self.info = base.info
        self._bank = SlotBank(base.device, base.dtype)
        self._runner = Runner(base, self._bank, Metrics())
        self._slots = itertools.count(1)

    def start(self) -> None:
        self._runner.start()

    def stop(self) -> None:
        self._runner.stop()

    async def answer(self, sample: Sample) -> SampleOutput:
        """Raises what failed the sample."""
        leases: dict[str, SlotLease] = {part.digest: _Lease(part, next(self._slots)) for part in sample.target.parts}
        # shielded: the slots must outlive the pass, even if nobody waits for it any more
        [outcome] = await asyncio.shield(self._run(Batch([sample], leases)))
        if isinstance(outcome, AdapterdError):
            raise outcome
        return outcome

    async def _run(self, batch: Batch) -> list[SampleOutput | AdapterdError]:
        try:
            return await self._runner.run(batch)
        finally:
            for lease in batch.leases.values():
                self._bank.free(lease.slot)


def load_plain(model: ModelConfig) -> Plain:
    """Reads the base once more: not on the event loop."""
    return Plain(load_base(replace(model, backend="reference")))


class Prober:
    """Tries targets on the engine that serves.

    tolerance   of |difference| / (1 + |plain|), the largest over everything that a probe gives
    """

    def __init__(self, engine: Engine, plain: Plain, tolerance: float) -> None:
        self._engine, self._plain, self._tolerance = engine, plain, tolerance

    async def check_adapter(self, adapter: Adapter) -> None:
        """Raises NotProven with both numbers. A fusion alone has no answer to check."""
        if adapter.spec.fusion is None:
            await self.check(target_of(adapter), adapter.manifest.name)

    async def check(self, target: Target, name: str) -> float:
        """The largest difference. Raises NotProven if that is beyond the tolerance."""
        encodings = list(probes(self._plain.info, target))
        wanted = [await self._plain.answer(_sample(encoding, target)) for encoding in encodings]
        alone = [await self._engine.submit(_sample(encoding, target)) for encoding in encodings]
        got = [*alone, *await self._mixed(target)]
        error = max(difference(one, other) for one, other in zip(got, wanted * 2, strict=True))
        if not error <= self._tolerance:
            raise NotProven(
                f"{name!r} differs from its plain forward pass by {error:.3g}, the tolerance is {self._tolerance:g};"
                " it is not served",
                difference=f"{error:.6g}",
                tolerance=f"{self._tolerance:g}",
            )
        return error

    async def _mixed(self, target: Target) -> list[SampleOutput]:
        """The probes' answers when the base's own samples ride among them."""
        encodings = list(probes(self._plain.info, target))
        samples = [sample for encoding in encodings for sample in (_sample(encoding, _BASE), _sample(encoding, target))]
        outputs = await asyncio.gather(*(self._engine.submit(sample) for sample in samples))
        return list(outputs[1::2])


_BASE = target_of(None)


def probes(base: BaseInfo, target: Target) -> Iterator[Encoding]:
    """Random tokens of several lengths, the same every time; of a Split as many as it takes."""
    rng = random.Random(0)
    splits = [sum(split.lengths) for branch in target.branches for split in _splits(branch.node)]
    taken = max((num_positions(branch.node, target) for branch in target.branches if branch.node), default=0)
    lengths = splits[:1] * 2 or [
        max(1, min(length, base.max_tokens // 2, base.max_tokens - taken)) for length in LENGTHS
    ]
    for length in lengths:
        ids = tuple(rng.choices(range(min(FIRST_TOKEN, base.vocab_size - 1), base.vocab_size), k=length))
        yield Encoding(ids, (0,) * length, TokenInput(ids), word_starts=tuple(range(1, length)))


def _splits(node: Node | None) -> Iterator[Split]:
    """From the outside in."""
    if node is None or isinstance(node, Leaf):
        return
    if isinstance(node, Split):
        yield node
    for child in node.children:
        yield from _splits(child)


def _sample(encoding: Encoding, target: Target) -> Sample:
    reply = asyncio.get_running_loop().create_future()
    return Sample(encoding, target, Pooling.MEAN, reply, deadline=None, return_hidden=True)


# without a server


def probe(model: ModelConfig, folder: Path, expression: str, tolerance: float) -> float:
    """Prove one adapter or composition of `folder`; the largest difference. Raises what loading and the check raise."""
    return asyncio.run(_probe(model, folder, expression, tolerance))


async def _probe(model: ModelConfig, folder: Path, expression: str, tolerance: float) -> float:
    base, plain = load_base(model), load_plain(model)
    cache = CacheConfig(adapters=(folder,))
    async with _engine(base, plain, cache) as (scheduler, residency):
        adapters = Adapters(cache, base.info, base.dtype, residency, Metrics(), weights=base)
        await adapters.start()
        try:
            compositions = Compositions(adapters, cache, base.info)
            await compositions.start()
            lease = await compositions.ready(expression)
            try:
                return await Prober(scheduler, plain, tolerance).check(lease.target, expression)
            finally:
                lease.release()
        finally:
            await adapters.stop()


@asynccontextmanager
async def _engine(base: Base, plain: Plain, cache: CacheConfig) -> AsyncIterator[tuple[Scheduler, Residency]]:
    """Scheduler, residency, slots and runner as the server has them."""
    metrics, bank = Metrics(), SlotBank(base.device, base.dtype)
    residency = Residency(bank, cache.device_bytes, metrics)
    runner = Runner(base, bank, metrics)
    scheduler = Scheduler(SchedulerConfig(), residency.acquire, runner.run, metrics)
    residency.on_room = scheduler.notify
    runner.start()
    plain.start()
    await scheduler.start()
    try:
        yield scheduler, residency
    finally:
        await scheduler.stop()
        runner.stop()
        plain.stop()
