"""What the console shows of the server now: cumulative counts, from which it makes rates."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client.samples import Sample

from server.ledger import Ledger
from server.metrics import STAGES, Metrics
from server.recent import Recent
from server.tenants import Tenants
from server.totals import Totals

MAX_BUSIEST = 20
TIERS = ("device", "host", "disk")


class Counts:
    """Samples of a scrape, to be looked up by name and labels."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            self._by_name[sample.name].append(sample)

    def total(self, name: str, **labels: str) -> float:
        found = self._by_name.get(f"adapterd_{name}", ())
        return sum(sample.value for sample in found if labels.items() <= sample.labels.items())

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for sample in self._by_name.get(f"adapterd_{name}", ()):
            if labels.items() <= sample.labels.items():
                sums[sample.labels[label]] += sample.value
        return dict(sums)


@dataclass(frozen=True, slots=True)
class State:
    """The parts of a server that are looked at."""

    metrics: Metrics
    totals: Totals
    tenants: Tenants
    ledger: Ledger
    recent: Recent
    started_at: float

    def counted(self) -> dict[str, Any]:
        """What metrics tell. Any thread may call."""
        counts = Counts(sample for family in self.totals.collect() for sample in family.samples)
        return {
            "requests": counts.by("outcome", "requests_total"),
            "tokens": counts.total("tenant_tokens_total"),
            "in_flight": counts.total("in_flight_requests"),
            "queue": {"samples": counts.total("queue_samples"), "tokens": counts.total("queue_tokens")},
            "stages": {stage: _histogram(counts, stage) for stage in STAGES},
            "batches": {
                "count": counts.total("batch_samples_count"),
                "samples": counts.total("batch_samples_sum"),
                "tokens": counts.total("batch_tokens_sum"),
                "adapters": counts.total("batch_adapters_sum"),
                "compute_s": counts.total("compute_seconds_total"),
            },
            "tiers": [_tier(counts, tier) for tier in TIERS],
            "slots": counts.by("state", "slots"),
            "refused": counts.by("reason", "refused_total"),
            "expired": counts.total("expired_total"),
            "cancelled": counts.total("cancelled_total"),
            "canaries": counts.by("outcome", "canaries_total"),
            "tenants": [_tenant(counts, name) for name in counts.by("tenant", "tenant_requests_total")],
        }

    def now(self) -> dict[str, Any]:
        """What only the event loop's thread may look at."""
        busiest = self.metrics.usage.busiest(MAX_BUSIEST)
        return {
            "at": time.time(),
            "uptime_s": time.time() - self.started_at,
            "recent_batches": [asdict(note) for note in self.recent.batches],
            "errors": [asdict(note) for note in self.recent.errors],
            "busiest": [
                {
                    "adapter": name,
                    "requests": usage.num_answered + usage.num_failed,
                    "failed": usage.num_failed,
                    "tokens": usage.num_tokens,
                    "queue_s": usage.queue_s,
                    "compute_s": usage.compute_s,
                    "last_used_at": usage.last_at,
                }
                for name, usage in busiest
            ],
            "held": {
                tenant.name: {"weight": tenant.weight, "in_flight": held.requests, "tokens_in_flight": held.tokens}
                for tenant in self.tenants.all
                for held in [self.ledger.held(tenant.index)]
            },
        }


def merged(counted: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Both parts, tenants joined by name."""
    held = now.pop("held")
    counts = {tenant["name"]: tenant for tenant in counted["tenants"]}
    empty = {"answered": 0.0, "refused": 0.0, "failed": 0.0, "tokens": 0.0}
    tenants = [{**empty, **counts.get(name, {}), "name": name, **facts} for name, facts in held.items()]
    return {**counted, **now, "tenants": tenants}


def _histogram(counts: Counts, stage: str) -> dict[str, Any]:
    name = "request_duration_seconds"
    buckets = counts.by("le", f"{name}_bucket", stage=stage)
    edges = sorted((float(edge), count) for edge, count in buckets.items())
    return {
        "count": counts.total(f"{name}_count", stage=stage),
        "sum_s": counts.total(f"{name}_sum", stage=stage),
        "buckets": [[None if math.isinf(edge) else edge, count] for edge, count in edges],
    }


def _tier(counts: Counts, tier: str) -> dict[str, Any]:
    return {
        "tier": tier,
        "used_bytes": counts.total("tier_bytes", tier=tier),
        "budget_bytes": counts.total("tier_budget_bytes", tier=tier),
        "num_adapters": counts.total("tier_adapters", tier=tier),
        "hits": counts.total("hits_total", tier=tier),
        "misses": counts.total("misses_total", tier=tier),
        "evictions": counts.total("evictions_total", tier=tier),
    }


def _tenant(counts: Counts, name: str) -> dict[str, Any]:
    outcomes = counts.by("outcome", "tenant_requests_total", tenant=name)
    return {
        "name": name,
        **{outcome: outcomes.get(outcome, 0.0) for outcome in ("answered", "refused", "failed")},
        "tokens": counts.total("tenant_tokens_total", tenant=name),
    }
