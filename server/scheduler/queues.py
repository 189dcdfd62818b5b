"""The one queue of the server: per tenant by priority and arrival, indexed by target. `Admission` bounds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from server.core import Sample
from server.scheduler.fairness import DeficitRoundRobin

# Every so many samples of a tenant the one that has waited longest goes, whatever its priority: behind n others of its
# tenant it is among the next OLDEST_EVERY * (n + 1).
OLDEST_EVERY = 8

Key = TypeVar("Key", str, int)
Line = dict[Sample, None]  # samples in order of arrival; any of them leaves in constant time


class TenantLine:
    """The samples of one tenant: those of the highest priority first, each priority in order of arrival."""

    def __init__(self) -> None:
        self._by_priority: dict[int, Line] = {}
        self._by_arrival: Line = {}
        self._num_taken = 0

    def __len__(self) -> int:
        return len(self._by_arrival)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._by_arrival)

    def push(self, sample: Sample) -> None:
        self._by_priority.setdefault(sample.priority, {})[sample] = None
        self._by_arrival[sample] = None

    def next(self) -> Sample:
        """The one that goes next; the same until `taken` or `remove` changes something."""
        is_turn_of_oldest = self._num_taken % OLDEST_EVERY == OLDEST_EVERY - 1
        line = self._by_arrival if is_turn_of_oldest else self._by_priority[max(self._by_priority)]
        return next(iter(line))

    def taken(self) -> None:
        """One has gone into a batch."""
        self._num_taken += 1

    def remove(self, sample: Sample) -> None:
        del self._by_arrival[sample]
        _leave(self._by_priority, sample.priority, sample)


class Queue:
    """Samples that wait for a batch. Pure: no clock, no events, no futures."""

    def __init__(self, turns: DeficitRoundRobin) -> None:
        self._turns = turns
        self._by_tenant: dict[str, TenantLine] = {}
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
        if sample.tenant not in self._by_tenant:
            self._by_tenant[sample.tenant] = TenantLine()
            self._turns.enter(sample.tenant)
        self._by_tenant[sample.tenant].push(sample)
        self._by_target.setdefault(sample.digest, {})[sample] = None
        self._num_arrived += 1
        self._arrival[sample] = self._num_arrived
        self._num_tokens += sample.num_tokens

    def next(self) -> Sample | None:
        """What the tenant whose turn it is has to go next; it stays in the queue."""
        tenant = self._turns.turn(lambda tenant: self._by_tenant[tenant].next().num_rows)
        return None if tenant is None else self._by_tenant[tenant].next()

    def take(self, sample: Sample) -> None:
        """Remove `sample` for a batch; its tenant pays for it."""
        self._turns.charge(sample.tenant, sample.num_rows)
        self._by_tenant[sample.tenant].taken()
        self.remove(sample)

    def remove(self, sample: Sample) -> None:
        del self._arrival[sample]
        self._num_tokens -= sample.num_tokens
        _leave(self._by_target, sample.digest, sample)
        line = self._by_tenant[sample.tenant]
        line.remove(sample)
        if not line:
            del self._by_tenant[sample.tenant]
            self._turns.leave(sample.tenant)

    def waiting(self) -> list[Sample]:
        """All samples, oldest first."""
        return list(self._arrival)

    def waiting_for(self, digest: str) -> list[Sample]:
        """All samples of one target, oldest first."""
        return list(self._by_target.get(digest, {}))

    def check_integrity(self) -> None:
        """AssertionError when indexes and counters disagree."""
        lines = ([*self._by_tenant.values()], [*self._by_target.values()])
        for index in lines:
            assert all(index), "an empty line was kept"
            assert {sample for line in index for sample in line} == set(self._arrival)
        assert self._num_tokens == sum(sample.num_tokens for sample in self._arrival)


def _leave(index: dict[Key, Line], key: Key, sample: Sample) -> None:
    line = index[key]
    del line[sample]
    if not line:
        del index[key]
