"""Stages 3 to 5 behind one interface of plain data: what a front end asks of the process that owns the device.

`LocalEngine` is that process's own; `server/fronts/remote.py` has the one of a front process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from server.canary import Canary
from server.core import (
    ANYONE,
    AdapterStatus,
    BaseInfo,
    Encoding,
    Parameters,
    Sample,
    SampleOutput,
    Target,
    TargetLease,
    Tenant,
    Wanted,
)
from server.errors import AdapterNotFound, InvalidInput
from server.metrics import Metrics
from server.primitives import Head
from server.results import Question, fitted, heads_of
from server.stopwatch import Stopwatch
from server.tenants import Tenants, require_own, require_use
from server.usage import COMPOSITIONS, Usage

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
    priority: int = 0
    tenant: str = ANYONE.name
    version: str = ""


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
    """Every method raises AdapterdErrors. A cancelled caller leaves nothing behind.

    tenant   who asks, by name: what that one may not know of is not there
    """

    async def check(self, expression: str, tenant: str) -> None:
        """Raises AdapterNotFound and InvalidInput for what no adapter can answer. Loads nothing."""

    async def compute(self, work: Work) -> Computed: ...

    async def describe(self, expression: str, tenant: str, version: str = "") -> Answerer:
        """What would answer. Loads it if need be."""

    async def usage(self, names: Sequence[str], tenant: str) -> Sequence[tuple[str, Usage]]:
        """Of these, or of all: the ones that were asked for and are the tenant's own, by name.

        What is shared with it others ask for too: only who may observe is told.
        """

    async def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> Page: ...
    async def get(self, name: str, tenant: str) -> AdapterStatus: ...

    async def card(self, name: str, tenant: str) -> str:
        """Its model card, Markdown."""

    # These raise Forbidden where the tenant may only ask for the adapter.

    async def load(self, name: str, tenant: str, percent: int = 100) -> tuple[AdapterStatus, str]: ...
    async def unload(self, name: str, tenant: str) -> tuple[int, int, int]: ...
    async def pin(self, name: str, is_pinned: bool, tenant: str) -> AdapterStatus: ...
    async def prefetch(self, names: Sequence[str], tenant: str) -> int: ...
    async def set_traffic(self, name: str, shares: Mapping[str, int], tenant: str) -> AdapterStatus: ...


class Adapters(Protocol):
    """The part of adapters_cache's facade that this file uses."""

    def check(self, expression: str, tenant: Tenant) -> None: ...
    async def ready(
        self, expression: str, heads: Sequence[str], skip_layers: Sequence[int], key: str, tenant: Tenant, version: str
    ) -> TargetLease: ...

    def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> Page: ...
    def get(self, name: str) -> AdapterStatus: ...
    async def card(self, name: str) -> str: ...
    async def load(self, name: str, percent: int = 100) -> tuple[AdapterStatus, str]: ...
    async def unload(self, name: str) -> tuple[int, int, int]: ...
    async def pin(self, name: str, is_pinned: bool) -> AdapterStatus: ...
    def prefetch(self, names: Sequence[str], tenant: Tenant) -> int: ...
    async def set_traffic(self, name: str, shares: Mapping[str, int]) -> AdapterStatus: ...


class Scheduler(Protocol):
    async def submit(self, sample: Sample) -> SampleOutput: ...


class LocalEngine:
    """The engine of this process. All on the event loop's thread."""

    def __init__(
        self,
        adapters: Adapters,
        scheduler: Scheduler,
        metrics: Metrics,
        base: BaseInfo,
        tenants: Tenants | None = None,
        canary: Canary | None = None,
    ) -> None:
        self._adapters = adapters
        self._scheduler = scheduler
        self._metrics = metrics
        self._base = base
        self._tenants = tenants or Tenants()
        self._canary = canary
        self._answerers: dict[object, Answerer] = {}

    async def check(self, expression: str, tenant: str = ANYONE.name) -> None:
        self._adapters.check(expression, self._tenants.get(tenant))

    async def compute(self, work: Work) -> Computed:
        started = time.monotonic()
        try:
            computed = await self._computed(work)
        except Exception as error:
            if not isinstance(error, AdapterNotFound | InvalidInput):  # which are the caller's own
                self._metrics.usage.failed(_counted_as(work.adapter), time.monotonic() - started)
            raise
        self._metrics.usage.answered(
            _counted_as(work.adapter),
            num_inputs=len(work.questions),
            num_tokens=sum(encoding.num_tokens for question in work.questions for encoding in question.encodings),
            ready_s=computed.ready_s,
            queue_s=max(output.queue_s for output in computed.outputs),
            compute_s=max(output.compute_s for output in computed.outputs),
            total_s=time.monotonic() - started,
        )
        return computed

    async def _computed(self, work: Work) -> Computed:
        watch, started, has_failed = Stopwatch(work.deadline, self._metrics), time.monotonic(), False
        tenant = self._tenants.get(work.tenant)
        with watch.stage("ready"):
            lease = await self._adapters.ready(
                work.adapter, work.heads, work.skip_layers, work.sticky_key, tenant, work.version
            )  # 3
        is_handed_on = False
        try:
            questions = fitted(work.questions, lease.target, work.parameters, self._base)
            encodings = [encoding for question in questions for encoding in question.encodings]
            outputs = await self._compute([_sample(work, encoding, lease.target) for encoding in encodings])  # 4 and 5
            if self._canary is not None:
                is_handed_on = self._canary.watch(lease, encodings, outputs, work.parameters.pooling)
        except Exception as error:
            has_failed = not isinstance(error, InvalidInput)  # which is the caller's own
            raise
        finally:
            if not is_handed_on:
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

    async def describe(self, expression: str, tenant: str = ANYONE.name, version: str = "") -> Answerer:
        lease = await self._adapters.ready(expression, (), (), "", self._tenants.get(tenant), version)
        try:
            return self._answerer(lease)
        finally:
            lease.release()

    async def usage(self, names: Sequence[str] = (), tenant: str = ANYONE.name) -> Sequence[tuple[str, Usage]]:
        asker = self._tenants.get(tenant)
        known = self._metrics.usage.all(names)
        return [(name, usage) for name, usage in known if asker.can_observe or asker.owns(name)]

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
        wanted = replace(wanted, tenant=self._tenants.get(wanted.tenant.name))  # of now
        return self._adapters.list(wanted, after=after, limit=limit)

    async def get(self, name: str, tenant: str = ANYONE.name) -> AdapterStatus:
        require_use(self._tenants.get(tenant), name)
        return self._adapters.get(name)

    async def card(self, name: str, tenant: str = ANYONE.name) -> str:
        require_use(self._tenants.get(tenant), name)
        return await self._adapters.card(name)

    async def load(self, name: str, tenant: str = ANYONE.name, percent: int = 100) -> tuple[AdapterStatus, str]:
        require_own(self._tenants.get(tenant), name)
        return await self._adapters.load(name, percent)

    async def unload(self, name: str, tenant: str = ANYONE.name) -> tuple[int, int, int]:
        require_own(self._tenants.get(tenant), name)
        return await self._adapters.unload(name)

    async def pin(self, name: str, is_pinned: bool, tenant: str = ANYONE.name) -> AdapterStatus:
        require_own(self._tenants.get(tenant), name)
        return await self._adapters.pin(name, is_pinned)

    async def prefetch(self, names: Sequence[str], tenant: str = ANYONE.name) -> int:
        return self._adapters.prefetch(names, self._tenants.get(tenant))

    async def set_traffic(self, name: str, shares: Mapping[str, int], tenant: str = ANYONE.name) -> AdapterStatus:
        require_own(self._tenants.get(tenant), name)
        return await self._adapters.set_traffic(name, shares)


def _counted_as(expression: str) -> str:
    return COMPOSITIONS if "(" in expression else expression


def _sample(work: Work, encoding: Encoding, target: Target) -> Sample:
    return Sample(
        encoding=encoding,
        target=target,
        pooling=work.parameters.pooling,
        reply=asyncio.get_running_loop().create_future(),
        deadline=work.deadline,
        tenant=work.tenant,
        priority=work.priority,
    )
