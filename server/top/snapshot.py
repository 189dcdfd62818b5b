"""What happened between two looks, as plain data: rates, latencies, and what is there now."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from server.top.scrape import Labels, Scrape

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
STAGES = ("admit", "tokenize", "ready", "queue", "compute", "total")
TIERS = ("device", "host", "disk")  # from where an adapter is used to where it comes from
BATCH = ("samples", "tokens", "adapters")
REST = "_other"  # the adapters that the server does not name one by one
ADAPTERS, ADAPTER_TOKENS = "adapter_requests_total", "adapter_tokens_total"


@dataclass(frozen=True, slots=True)
class Between:
    """Two looks at one server. What counted down was started anew in between, and has counted from 0."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        return max(1e-9, self.after.at - self.before.at)

    def grown(self, name: str, **labels: str) -> float:
        """Sample by sample, for of several one may have begun anew."""
        earlier = {_key(own): value for own, value in self.before.having(name, labels)}
        total = 0.0
        for own, value in self.after.having(name, labels):
            known = earlier.get(_key(own), 0.0)
            total += value - known if value >= known else value
        return total

    def rate(self, name: str, **labels: str) -> float:
        return self.grown(name, **labels) / self.seconds

    def rates(self, name: str, label: str) -> dict[str, float]:
        """By a label's value."""
        return {value: self.rate(name, **{label: value}) for value in self.after.values_of(name, label)}

    def mean(self, name: str) -> float | None:
        """Of a histogram's observations; None where there were none."""
        count = self.grown(f"{name}_count")
        return self.grown(f"{name}_sum") / count if count else None

    def share(self, part: str, rest: str, **labels: str) -> float | None:
        """Of `part` in both; None where there was neither."""
        part_grown, rest_grown = self.grown(part, **labels), self.grown(rest, **labels)
        return part_grown / (part_grown + rest_grown) if part_grown + rest_grown else None

    def quantile(self, name: str, quantile: float, **labels: str) -> float | None:
        """As Prometheus's histogram_quantile: evenly spread within a bucket, at most the last bound."""
        bounds = sorted(float(text) for text in self.after.values_of(f"{name}_bucket", "le"))
        counts = {bound: 0.0 for bound in bounds}
        for own, _ in self.after.having(f"{name}_bucket", labels):
            counts[float(own["le"])] = self.grown(f"{name}_bucket", **{**labels, "le": own["le"]})
        return quantile_of([(bound, counts[bound]) for bound in bounds], quantile)


def quantile_of(buckets: list[tuple[float, float]], quantile: float) -> float | None:
    """buckets   upper bounds, the last one infinite, and how many observations are not above each"""
    total = buckets[-1][1] if buckets else 0.0
    if not total:
        return None
    wanted, lower, below = quantile * total, 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = (lower if math.isinf(bound) else bound), count
    return lower


def _key(labels: Labels) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


class LastUse:
    """When each adapter was last seen at work. Of those at rest, the one that was busy last is shown first."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def note(self, between: Between) -> None:
        for name in between.after.values_of(ADAPTERS, "adapter"):
            if between.grown(ADAPTERS, adapter=name):
                self._at[name] = between.after.at

    def seconds_ago(self, name: str, now: float) -> float | None:
        """None where nobody has seen it at work."""
        return now - self._at[name] if name in self._at else None


def snapshot(before: Scrape, after: Scrape, last_use: LastUse) -> dict[str, Any]:
    """The document of `adapterd top --json`; rates are per second, None is what there is no number for."""
    between = Between(before, after)
    last_use.note(between)
    return {
        "interval_s": round(between.seconds, 3),
        "server": _server(after),
        "requests_per_s": _moving(between.rates("requests_total", "outcome")),
        "refused_per_s": _moving(between.rates("refused_total", "reason")),
        "tokens_per_s": {
            "answered": between.rate("tenant_tokens_total"),
            "computed": between.rate("batch_tokens_sum"),
        },
        "latency_s": {stage: _latency(between, stage) for stage in STAGES},
        "in_flight_requests": int(after.value("in_flight_requests")),
        "queue_samples": int(after.value("queue_samples")),
        "queue_tokens": int(after.value("queue_tokens")),
        "batches_per_s": between.rate("batch_samples_count"),
        "batch_means": {what: between.mean(f"batch_{what}") for what in BATCH},
        "batch_budget_tokens": int(after.value("batch_budget_tokens")),
        "device_busy": min(1.0, between.rate("compute_seconds_total")),
        "tiers": {tier: _tier(between, tier) for tier in TIERS},
        "slots": {state: int(after.value("slots", state=state)) for state in ("leased", "idle")},
        "tenants": _tenants(between),
        "adapters": _adapters(between, last_use),
    }


def _server(after: Scrape) -> dict[str, str]:
    labels = next((dict(own) for own, _ in after.having("build_info", {})), {})
    return {name: labels.get(name, "") for name in ("version", "base", "device")}


def _moving(rates: dict[str, float]) -> dict[str, float]:
    return {name: rate for name, rate in rates.items() if rate}


def _latency(between: Between, stage: str) -> dict[str, float | None]:
    name = "request_duration_seconds"
    return {
        "per_s": between.rate(f"{name}_count", stage=stage),
        **{label: between.quantile(name, share, stage=stage) for label, share in QUANTILES.items()},
    }


def _tier(between: Between, tier: str) -> dict[str, float | int | None]:
    after = between.after
    return {
        "bytes": int(after.value("tier_bytes", tier=tier)),
        "budget_bytes": int(after.value("tier_budget_bytes", tier=tier)),
        "adapters": int(after.value("tier_adapters", tier=tier)),
        "hit_rate": between.share("hits_total", "misses_total", tier=tier),
        "loads_per_s": between.rate("loads_total", tier=tier),
        "evictions_per_s": between.rate("evictions_total", tier=tier),
    }


def _tenants(between: Between) -> list[dict[str, Any]]:
    rows = [
        {
            "tenant": name,
            **{
                f"{outcome}_per_s": between.rate("tenant_requests_total", tenant=name, outcome=outcome)
                for outcome in ("answered", "refused", "failed")
            },
            "tokens_per_s": between.rate("tenant_tokens_total", tenant=name),
        }
        for name in between.after.values_of("tenant_requests_total", "tenant")
    ]
    return sorted(rows, key=lambda row: (-row["tokens_per_s"], row["tenant"]))


def _adapters(between: Between, last_use: LastUse) -> list[dict[str, Any]]:
    """The busiest first, then those that were busy last; the rest that the server does not name comes last."""
    rows = [
        {
            "adapter": name,
            "requests_per_s": between.rate(ADAPTERS, adapter=name),
            "tokens_per_s": between.rate(ADAPTER_TOKENS, adapter=name),
            "last_used_s_ago": last_use.seconds_ago(name, between.after.at),
        }
        for name in between.after.values_of(ADAPTERS, "adapter")
    ]
    return sorted(rows, key=_busyness)


def _busyness(row: dict[str, Any]) -> tuple[bool, float, float, str]:
    ago = row["last_used_s_ago"]
    return row["adapter"] == REST, -row["requests_per_s"], math.inf if ago is None else ago, row["adapter"]
