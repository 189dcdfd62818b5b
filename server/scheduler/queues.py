"""The one queue of the server: bounded, per tenant in order of arrival, indexed by target."""

from __future__ import annotations

from server.config import SchedulerConfig
from server.core import Sample
from server.errors import Overloaded
from server.scheduler.fairness import DeficitRoundRobin

RETRY_AFTER_S = 0.1  # what a refused caller is told; about the time of a few batches

Line = dict[Sample, None]  # samples in order of arrival; any of them leaves in constant time


class Queue:
    """Samples that wait for a batch. Pure: no clock, no events, no futures."""

    def __init__(self, config: SchedulerConfig, turns: DeficitRoundRobin) -> None:
        self._max_samples = config.max_queued_samples
        self._max_tokens = config.max_queued_tokens
        self._turns = turns
        self._by_tenant: dict[str, Line] = {}
        self._by_target: dict[str, Line] = {}
        self._arrival: dict[Sample, int] = {}
        self._num_arrived = 0
        self._num_tokens = 0

    @property
    def num_samples(self) -> int:
        return len(self._arrival)

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def __contains__(self, sample: Sample) -> bool:
        return sample in self._arrival

    def push(self, sample: Sample) -> None:
        """Append. Raises Overloaded when full; an empty queue takes any sample, however long."""
        self._check_room(sample)
        if sample.tenant not in self._by_tenant:
            self._turns.enter(sample.tenant)
        self._by_tenant.setdefault(sample.tenant, {})[sample] = None
        self._by_target.setdefault(sample.digest, {})[sample] = None
        self._num_arrived += 1
        self._arrival[sample] = self._num_arrived
        self._num_tokens += sample.num_tokens

    def next(self) -> Sample | None:
        """The oldest sample of the tenant whose turn it is; it stays in the queue."""
        tenant = self._turns.turn(lambda tenant: self._oldest(tenant).num_tokens)
        return None if tenant is None else self._oldest(tenant)

    def take(self, sample: Sample) -> None:
        """Remove `sample` for a batch; its tenant pays for it."""
        self._turns.charge(sample.tenant, sample.num_tokens)
        self.remove(sample)

    def remove(self, sample: Sample) -> None:
        del self._arrival[sample]
        self._num_tokens -= sample.num_tokens
        _leave(self._by_target, sample.digest, sample)
        _leave(self._by_tenant, sample.tenant, sample)
        if sample.tenant not in self._by_tenant:
            self._turns.leave(sample.tenant)

    def waiting(self) -> list[Sample]:
        """All samples, oldest first."""
        return list(self._arrival)

    def waiting_for(self, digest: str) -> list[Sample]:
        """All samples of one target, oldest first."""
        return list(self._by_target.get(digest, {}))

    def check_integrity(self) -> None:
        """AssertionError when indexes and counters disagree."""
        for index in (self._by_tenant, self._by_target):
            assert all(index.values()), "an empty line was kept"
            assert {sample for line in index.values() for sample in line} == set(self._arrival)
        assert self._num_tokens == sum(sample.num_tokens for sample in self._arrival)

    def _oldest(self, tenant: str) -> Sample:
        return next(iter(self._by_tenant[tenant]))

    def _check_room(self, sample: Sample) -> None:
        if self.num_samples >= self._max_samples:
            raise Overloaded(
                f"{self.num_samples} samples are waiting, the limit is {self._max_samples}; "
                f"try again in {RETRY_AFTER_S} s",
                retry_after_s=RETRY_AFTER_S,
            )
        if self._arrival and self._num_tokens + sample.num_tokens > self._max_tokens:
            raise Overloaded(
                f"{self._num_tokens} tokens are waiting and {sample.num_tokens} more exceed the limit of "
                f"{self._max_tokens}; try again in {RETRY_AFTER_S} s",
                retry_after_s=RETRY_AFTER_S,
            )


def _leave(index: dict[str, Line], key: str, sample: Sample) -> None:
    line = index[key]
    del line[sample]
    if not line:
        del index[key]
