"""The right adapter, provably: now and then a served sample is computed again, alone, and the two are compared.

The second time its adapters are placed anew, from host memory into slots of their own, so that a wrong slot, a mixed-up
row, a stale weight and a neighbour's influence all show.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from server.core import Adapter, Encoding, Pooling, Sample, SampleOutput, Target, TargetLease
from server.difference import difference
from server.errors import AdapterdError
from server.metrics import Metrics

log = logging.getLogger("adapterd")
TENANT = ""  # whom the second computation is charged to


class Engine(Protocol):
    async def submit(self, sample: Sample) -> SampleOutput: ...


class Canary:
    """Watches what is served, one sample at a time. On the event loop's thread.

    share       of the samples, 0 to 1
    tolerance   of |difference| / (1 + |alone|)
    forget      lets a slot go, by digest
    """

    def __init__(
        self, engine: Engine, share: float, tolerance: float, metrics: Metrics, forget: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._share = share
        self._tolerance = tolerance
        self._metrics = metrics
        self._forget = forget
        self._replay: asyncio.Task[None] | None = None

    def watch(
        self, lease: TargetLease, encodings: Sequence[Encoding], outputs: Sequence[SampleOutput], pooling: Pooling
    ) -> bool:
        """What was answered just now. True if one sample of it is being tried again, and `lease` is released then."""
        if self._replay is not None or random.random() >= self._share * len(encodings):
            return False
        index = random.randrange(len(encodings))
        self._replay = asyncio.create_task(self._try(lease, encodings[index], outputs[index], pooling))
        return True

    async def stop(self) -> None:
        if self._replay is not None:
            self._replay.cancel()
            await asyncio.gather(self._replay, return_exceptions=True)

    async def _try(self, lease: TargetLease, encoding: Encoding, served: SampleOutput, pooling: Pooling) -> None:
        target = _anew(lease.target)
        reply = asyncio.get_running_loop().create_future()
        sample = Sample(encoding, target, pooling, reply, deadline=None, tenant=TENANT, rides_alone=True)
        try:
            outcome = self._compare(lease.target, served, await self._engine.submit(sample))
        except AdapterdError as error:
            log.warning("canary: %s could not be computed again: %s", lease.target.digest, error.message)
            outcome = "failed"
        except Exception:
            log.exception("canary: %s could not be compared", lease.target.digest)
            outcome = "failed"
        finally:
            self._replay = None
            for part in target.parts:
                self._forget(part.digest)
            lease.release()
        self._metrics.canary_done(outcome)

    def _compare(self, target: Target, served: SampleOutput, alone: SampleOutput) -> str:
        distance = difference(served, alone)
        if distance <= self._tolerance:
            return "same"
        log.critical(
            "canary: digest %s was answered %.3g off what it gives alone, in batch %d of %d samples and %d adapters",
            *(target.digest, distance, served.batch.id, served.batch.num_samples, served.batch.num_adapters),
        )
        return "different"


def _anew(target: Target) -> Target:
    """The same target of other digests, which no slot holds."""
    return replace(target, digest=f"canary-{target.digest}", parts=tuple(map(_renamed, target.parts)))


def _renamed(part: Adapter) -> Adapter:
    return replace(part, manifest=replace(part.manifest, digest=f"canary-{part.digest}"))
