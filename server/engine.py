"""Stages 3 to 5 behind one interface of plain data: what a front end asks of the process that owns the device.

`LocalEngine` is that process's own; `server/fronts/remote.py` has the one of a front process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.core import (
    AdapterStatus,
    BaseInfo,
    Encoding,
    Parameters,
    Sample,
    SampleOutput,
    Target,
    TargetLease,
    Wanted,
)
from server.errors import InvalidInput
from server.metrics import Metrics
from server.primitives import Head
from server.results import Question, fitted, heads_of
from server.stopwatch import Stopwatch

MAX_ANSWERERS = 4096  # that are kept between requests

Page = tuple[list[AdapterStatus], int]


@dataclass(frozen=True, slots=True)
class Work:
    """A tokenized request; the fields are those of `core.Request`."""

    adapter: str
    questions: tuple[Question, ...]
    parameters: Parameters
    deadline: float | None = None
    heads: tuple[str, ...] = ()
    skip_layers: tuple[int, ...] = ()
    sticky_key: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Answerer:
    """What answered, as far as results tell of it. Requests with the same target share one, so compare by identity.

    digest   of the target, or of the base that answered alone
    names    of each branch: its adapters as an expression, and its head, empty for pooled vectors
    heads    of each branch; None for pooled vectors
    """

    digest: str
    names: tuple[tuple[str, str], ...]
    heads: tuple[Head | None, ...]


@dataclass(frozen=True, slots=True)
class Computed:
    """What came of work. One output per encoding, in their order. `ready_s` is what stage 3 took."""

    answerer: Answerer
    outputs: tuple[SampleOutput, ...]
    ready_s: float


class Engine(Protocol):
    """Every method raises AdapterdErrors. A cancelled caller leaves nothing behind."""

    async def check(self, expression: str) -> None:
        """Raises AdapterNotFound and InvalidInput for what no adapter can answer. Loads nothing."""

    async def compute(self, work: Work) -> Computed: ...

    async def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> Page: ...
    async def get(self, name: str) -> AdapterStatus: ...
    async def load(self, name: str, percent: int = 100) -> tuple[AdapterStatus, str]: ...
    async def unload(self, name: str) -> tuple[int, int, int]: ...
    async def pin(self, name: str, is_pinned: bool) -> AdapterStatus: ...
    async def prefetch(self, names: Sequence[str]) -> int: ...
    async def set_traffic(self, name: str, shares: Mapping[str, int]) -> AdapterStatus: ...


class Adapters(Protocol):
    """The part of adapters_cache's facade that this file uses."""

    def check(self, expression: str) -> None: ...
    async def ready(
        self, expression: str, heads: Sequence[str], skip_layers: Sequence[int], key: str
    ) -> TargetLease: ...

    def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> Page: ...
    def get(self, name: str) -> AdapterStatus: ...
    async def load(self, name: str, percent: int = 100) -> tuple[AdapterStatus, str]: ...
    async def unload(self, name: str) -> tuple[int, int, int]: ...
    async def pin(self, name: str, is_pinned: bool) -> AdapterStatus: ...
    def prefetch(self, names: Sequence[str]) -> int: ...
    async def set_traffic(self, name: str, shares: Mapping[str, int]) -> AdapterStatus: ...


class Scheduler(Protocol):
    async def submit(self, sample: Sample) -> SampleOutput: ...


class LocalEngine:
    """The engine of this process. All on the event loop's thread."""

    def __init__(self, adapters: Adapters, scheduler: Scheduler, metrics: Metrics, base: BaseInfo) -> None:
        self._adapters = adapters
        self._scheduler = scheduler
        self._metrics = metrics
        self._base = base
        self._answerers: dict[object, Answerer] = {}

    async def check(self, expression: str) -> None:
        self._adapters.check(expression)

    async def compute(self, work: Work) -> Computed:
        watch, started, has_failed = Stopwatch(work.deadline, self._metrics), time.monotonic(), False
        with watch.stage("ready"):
            lease = await self._adapters.ready(work.adapter, work.heads, work.skip_layers, work.sticky_key)  # 3
        try:
            questions = fitted(work.questions, lease.target, work.parameters, self._base)
            encodings = [encoding for question in questions for encoding in question.encodings]
            outputs = await self._compute([_sample(work, encoding, lease.target) for encoding in encodings])  # 4 and 5
        except Exception as error:
            has_failed = not isinstance(error, InvalidInput)  # which is the caller's own
            raise
        finally:
            lease.release()
            if lease.version is not None:
                self._metrics.version_done(*lease.version, time.monotonic() - started, has_failed=has_failed)
        return Computed(self._answerer(lease), tuple(outputs), watch.seconds["ready"])

    async def _compute(self, samples: Sequence[Sample]) -> list[SampleOutput]:
        """All samples through the scheduler; the first failure cancels the others."""
        if len(samples) == 1:
            return [await self._scheduler.submit(samples[0])]
        tasks = [asyncio.create_task(self._scheduler.submit(sample)) for sample in samples]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _answerer(self, lease: TargetLease) -> Answerer:
        target = lease.target
        key = (target.digest, lease.names, *(branch.head for branch in target.branches))
        known = self._answerers.get(key)
        if known is None:
            if len(self._answerers) >= MAX_ANSWERERS:
                self._answerers.clear()
            digest = target.digest if target.parts else self._base.fingerprint
            known = self._answerers[key] = Answerer(digest, lease.names, tuple(heads_of(target)))
        return known

    # administration

    async def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> Page:
        return self._adapters.list(wanted, after=after, limit=limit)

    async def get(self, name: str) -> AdapterStatus:
        return self._adapters.get(name)

    async def load(self, name: str, percent: int = 100) -> tuple[AdapterStatus, str]:
        return await self._adapters.load(name, percent)

    async def unload(self, name: str) -> tuple[int, int, int]:
        return await self._adapters.unload(name)

    async def pin(self, name: str, is_pinned: bool) -> AdapterStatus:
        return await self._adapters.pin(name, is_pinned)

    async def prefetch(self, names: Sequence[str]) -> int:
        return self._adapters.prefetch(names)

    async def set_traffic(self, name: str, shares: Mapping[str, int]) -> AdapterStatus:
        return await self._adapters.set_traffic(name, shares)


def _sample(work: Work, encoding: Encoding, target: Target) -> Sample:
    return Sample(
        encoding=encoding,
        target=target,
        pooling=work.parameters.pooling,
        reply=asyncio.get_running_loop().create_future(),
        deadline=work.deadline,
    )
