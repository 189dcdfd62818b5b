"""What was asked of each adapter, and series of the busiest for Prometheus.

The number of series is bounded however many adapters there are: `MAX_NAMED` have series of their own, all others share
one. Who has is decided anew now and then, by what was asked of late; a count stays where it was counted, so that every
series only grows until it goes.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_NAMED = 100
OTHERS = "_other"  # no adapter's name begins so
COMPOSITIONS = "_compositions"  # expressions, of which there are any number
REVIEW_S = 10.0
KEPT_SHARE = 0.8  # of what was asked before, at each review
STAYING = 1.5  # times what is asked of a newcomer, that one with series counts


@dataclass(slots=True)
class Series:
    """What is shown of one adapter, or of all others."""

    num_answered: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    queue_s: float = 0.0


@dataclass(slots=True)
class Usage:
    """Since the start, or since the adapter was unloaded; seconds of all its requests together.

    last_at   unix seconds
    """

    num_answered: int = 0
    num_failed: int = 0
    num_inputs: int = 0
    num_tokens: int = 0
    ready_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    answered_s: float = 0.0
    failed_s: float = 0.0
    last_at: float = 0.0


@dataclass(slots=True)
class _Entry:
    usage: Usage = field(default_factory=Usage)
    series: Series | None = None
    num_recent: int = 0
    heat: float = 0.0


class UsageBook(Collector):
    """By the name that requests asked for. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._others = Series()
        self._reviewed_at = 0.0

    def answered(
        self,
        name: str,
        *,
        num_inputs: int,
        num_tokens: int,
        ready_s: float,
        queue_s: float,
        compute_s: float,
        total_s: float,
    ) -> None:
        with self._lock:
            entry = self._entry(name)
            usage, series = entry.usage, entry.series or self._others
            usage.num_answered += 1
            usage.num_inputs += num_inputs
            usage.num_tokens += num_tokens
            usage.ready_s += ready_s
            usage.queue_s += queue_s
            usage.compute_s += compute_s
            usage.answered_s += total_s
            series.num_answered += 1
            series.num_tokens += num_tokens
            series.queue_s += queue_s

    def failed(self, name: str, total_s: float) -> None:
        with self._lock:
            entry = self._entry(name)
            entry.usage.num_failed += 1
            entry.usage.failed_s += total_s
            (entry.series or self._others).num_failed += 1

    def forget(self, name: str) -> None:
        """It was unloaded: its series go."""
        with self._lock:
            self._entries.pop(name, None)

    def get(self, name: str) -> Usage | None:
        """A copy."""
        with self._lock:
            entry = self._entries.get(name)
            return replace(entry.usage) if entry is not None else None

    def all(self, names: Sequence[str] = ()) -> list[tuple[str, Usage]]:
        """Copies of these, or of all, by name; without those that nobody asked for."""
        with self._lock:
            known = [name for name in names if name in self._entries] if names else sorted(self._entries)
            return [(name, replace(self._entries[name].usage)) for name in known]

    def busiest(self, number: int) -> list[tuple[str, Usage]]:
        """Those with the most requests of late."""
        with self._lock:
            self._review()
            entries = heapq.nlargest(number, self._entries.items(), key=lambda item: item[1].heat)
            return [(name, replace(entry.usage)) for name, entry in entries]

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "adapterd_adapter_requests", "Requests by adapter.", labels=("adapter", "outcome")
        )
        tokens = CounterMetricFamily("adapterd_adapter_tokens", "Tokens answered by adapter.", labels=("adapter",))
        queue_s = CounterMetricFamily(
            "adapterd_adapter_queue_seconds", "Time that inputs waited for a batch, by adapter.", labels=("adapter",)
        )
        with self._lock:
            self._review()
            shown = [(name, entry.series) for name, entry in self._entries.items() if entry.series is not None]
            for name, series in (*shown, (OTHERS, self._others)):
                requests.add_metric((name, "answered"), series.num_answered)
                requests.add_metric((name, "failed"), series.num_failed)
                tokens.add_metric((name,), series.num_tokens)
                queue_s.add_metric((name,), series.queue_s)
        yield from (requests, tokens, queue_s)

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry()
            if len(self._entries) <= MAX_NAMED:
                entry.series = Series()
        entry.num_recent += 1
        entry.usage.last_at = time.time()
        return entry

    def _review(self) -> None:
        """Series to those that are asked for most; what the others had shown ends."""
        now = time.monotonic()
        if now - self._reviewed_at < REVIEW_S:
            return
        self._reviewed_at = now
        for entry in self._entries.values():
            entry.heat = KEPT_SHARE * entry.heat + entry.num_recent
            entry.num_recent = 0
        named = heapq.nlargest(MAX_NAMED, self._entries.values(), key=_claim)
        chosen = {id(entry) for entry in named}
        for entry in self._entries.values():
            if id(entry) not in chosen:
                entry.series = None
            elif entry.series is None:
                entry.series = Series()


def _claim(entry: _Entry) -> float:
    return entry.heat * (STAYING if entry.series is not None else 1.0)
