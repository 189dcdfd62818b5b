"""The server's own stages 3 to 5 in this process, with every load timed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters_cache.adapters import Adapters
from adapters_cache.compositions import Compositions
from adapters_cache.residency import Residency
from loadtest import workload
from server.config import CacheConfig, SchedulerConfig
from server.core import Adapter, Encoding, Parameters, Tier, TokenInput
from server.engine import LocalEngine, Work
from server.metrics import Metrics
from server.model.base import Base
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.results import Question
from server.scheduler.scheduler import Scheduler

BATCH_TOKENS = 1024
NUM_TEXTS, LENGTH = 64, 16  # different ones, tokens of each


class _TimedBank(SlotBank):
    """Keeps how long placing an adapter took."""

    seconds: list[float]

    def write(self, slot: int, adapter: Adapter) -> None:
        started = time.perf_counter()
        super().write(slot, adapter)
        self.seconds.append(time.perf_counter() - started)


@dataclass(slots=True)
class Answered:
    """Requests of one run: latency of each, and how far each adapter had to come. Sorted by nothing."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    tiers: dict[Tier, int] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        return len(self.latencies) / self.seconds

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.latencies, q))

    def share(self, tier: Tier) -> float:
        return self.tiers.get(tier, 0) / max(1, len(self.latencies))


@dataclass(slots=True)
class Stack:
    """start_s   what registering every adapter took; activations: seconds of each placing on the device."""

    adapters: Adapters
    engine: LocalEngine
    start_s: float
    activations: list[float]
    _works: Sequence[Work]

    async def ask(self, name: str, number: int) -> None:
        work = self._works[number % len(self._works)]
        await self.engine.compute(Work(name, work.questions, work.parameters))

    async def run(
        self, names: Sequence[str], requests: NDArray[np.int64], num_callers: int, limit_s: float
    ) -> Answered:
        """A closed loop: each caller asks for the next of `requests` as soon as it has its answer."""
        answered, queue, started = Answered(), iter(requests.tolist()), time.perf_counter()

        async def call() -> None:
            for number in queue:
                if time.perf_counter() - started > limit_s:
                    return
                name = names[number]
                tier = self.adapters.get(name).tier
                answered.tiers[tier] = answered.tiers.get(tier, 0) + 1
                began = time.perf_counter()
                await self.ask(name, number)
                answered.latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(call() for _ in range(num_callers)))
        answered.seconds = time.perf_counter() - started
        return answered


@asynccontextmanager
async def stack(base: Base, config: CacheConfig) -> AsyncIterator[Stack]:
    """Start and, at the end, stop what a server has behind its wire."""
    metrics = Metrics()
    bank = _TimedBank(base.device, base.dtype)
    bank.seconds = []
    runner = Runner(base, bank, metrics)
    runner.start()
    residency = Residency(bank, config.device_bytes, metrics)
    scheduler = Scheduler(SchedulerConfig(max_batch_tokens=BATCH_TOKENS), residency.acquire, runner.run, metrics)
    residency.on_room = scheduler.notify
    await scheduler.start()
    started = time.perf_counter()
    adapters = Adapters(config, base.info, base.dtype, residency, metrics, weights=base)
    await adapters.start()
    compositions = Compositions(adapters, config, base.info)
    await compositions.start()
    start_s = time.perf_counter() - started
    try:
        yield Stack(
            adapters, LocalEngine(compositions, scheduler, metrics, base.info), start_s, bank.seconds, _works(base)
        )
    finally:
        await scheduler.stop()
        await adapters.stop()
        await asyncio.to_thread(runner.stop)


def config_of(folder: Path, disk: Path, host_bytes: int, device_bytes: int) -> CacheConfig:
    return CacheConfig(
        adapters=(folder,), disk_path=str(disk), host_bytes=host_bytes, device_bytes=device_bytes, watch_s=0.0
    )


def _works(base: Base) -> list[Work]:
    rng = random.Random(0)
    texts: list[Encoding] = [workload.encoding(LENGTH, base.info.vocab_size, rng) for _ in range(NUM_TEXTS)]
    return [Work("", (Question(TokenInput(text.input_ids), (text,)),), Parameters()) for text in texts]
