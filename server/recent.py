"""What happened lately, for people who look: the last batches, and what failed."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from server.core import BASE, Batch
from server.errors import AdapterdError

MAX_BATCHES = 40
MAX_ERRORS = 50
MAX_ADAPTERS = 24  # of a batch that are named; the others are counted
BATCH_EVERY_S = 0.1  # so that noting them costs nothing where there are thousands a second
MAX_MESSAGE_CHARS = 300


@dataclass(frozen=True, slots=True)
class BatchNote:
    """`adapters` are the ones with the most samples, with how many."""

    id: int
    at: float
    num_samples: int
    num_tokens: int
    num_adapters: int
    compute_s: float
    adapters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ErrorNote:
    """`count` is how often the same happened; `at` and `message` are of the last time."""

    at: float
    adapter: str
    tenant: str
    code: str
    reason: str
    message: str
    count: int = 1


class Recent:
    """Times are unix seconds. All on the event loop's thread; lists that are given out are copies."""

    def __init__(self) -> None:
        self._batches: deque[BatchNote] = deque(maxlen=MAX_BATCHES)
        self._errors: OrderedDict[tuple[str, str, str, str], ErrorNote] = OrderedDict()
        self._noted_at = 0.0

    @property
    def batches(self) -> list[BatchNote]:
        """Newest first."""
        return list(reversed(self._batches))

    @property
    def errors(self) -> list[ErrorNote]:
        """Newest first."""
        return list(reversed(self._errors.values()))

    def batch(self, batch: Batch, compute_s: float) -> None:
        """Of those that follow each other closely, one is noted."""
        now = time.time()
        if 0 <= now - self._noted_at < BATCH_EVERY_S:
            return
        self._noted_at = now
        names = Counter(part.manifest.name for sample in batch.samples for part in sample.target.parts)
        names[BASE] = sum(not sample.target.parts for sample in batch.samples)
        shown = tuple((name, count) for name, count in names.most_common(MAX_ADAPTERS) if count)
        self._batches.append(
            BatchNote(batch.id, now, len(batch.samples), batch.num_tokens, batch.num_adapters, compute_s, shown)
        )

    def failed(self, adapter: str, tenant: str, code: str, error: AdapterdError) -> None:
        self.add([ErrorNote(time.time(), adapter, tenant, code, error.reason, error.message[:MAX_MESSAGE_CHARS])])

    def add(self, notes: Iterable[ErrorNote]) -> None:
        for note in notes:
            key = (note.adapter, note.tenant, note.code, note.reason)
            known = self._errors.pop(key, None)
            self._errors[key] = replace(note, count=note.count + known.count) if known is not None else note
            if len(self._errors) > MAX_ERRORS:
                self._errors.popitem(last=False)

    def take_errors(self) -> list[ErrorNote]:
        """What another process is told: once."""
        notes = list(self._errors.values())
        self._errors.clear()
        return notes
