"""A batch that is still open, and how large it may become. Pure."""

from __future__ import annotations

from server.config import SchedulerConfig
from server.core import Sample, SlotLease

UNMEASURED_BATCH_TOKENS = 4096  # where nobody measured


class Budget:
    """Tokens of a batch: what the configuration says, and less for a while after the device ran out of memory."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._most = config.max_batch_tokens or UNMEASURED_BATCH_TOKENS
        self.tokens = self._most

    def lower(self, failed_tokens: int) -> None:
        self.tokens = max(1, min(self.tokens, failed_tokens // 2))

    def grow(self) -> None:
        if self.tokens < self._most:
            self.tokens = min(self._most, self.tokens + max(1, self._most // 100))


class Forming:
    """A batch that is still open."""

    def __init__(self, max_samples: int, max_tokens: int) -> None:
        self._max_samples, self._max_tokens = max_samples, max_tokens
        self.samples: list[Sample] = []
        self.leases: dict[str, SlotLease] = {}
        self.num_tokens = 0

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.num_tokens += sample.num_rows

    def has_leases(self, sample: Sample) -> bool:
        return all(part.digest in self.leases for part in sample.target.parts)

    def has_room(self, sample: Sample) -> bool:
        """The first sample always fits: one that is longer than the budget runs alone."""
        if not self.samples:
            return True
        fits = self.num_tokens + sample.num_rows <= self._max_tokens and len(self.samples) < self._max_samples
        return fits and not (sample.rides_alone or self.samples[0].rides_alone)
