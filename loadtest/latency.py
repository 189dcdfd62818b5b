"""What a run of the open loop says: percentiles, rates, stages, batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from loadtest.client import STAGES, Outcomes

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
MAX_LAG_SHARE = 0.2  # of the objective. A generator that is later than that at its p99 measured itself
WIRE = "wire and client"  # what the server does not see: from due to received, and from replied to read
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Objective:
    """The share `quantile` of all requests is answered within `seconds` of when it was due."""

    seconds: float
    quantile: str = "p99"

    def __str__(self) -> str:
        return f"{self.quantile} <= {self.seconds * 1000:g} ms"


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Seconds throughout; a latency is endless where that request was not answered.

    rate                   requests due a second
    answered_per_s         from the first due to the last answer
    goodput_per_s          of those, answered within the objective
    lag_p99_s              how late the generator sent
    is_generator_limited   it sent so late that the latencies are its own: they say nothing of the server
    stages_s               mean over answered requests
    batch                  mean samples, tokens, adapters of a forward pass
    tenants                percentiles of each
    """

    name: str
    rate: float
    num_requests: int
    seconds: float
    latency_s: dict[str, float]
    answered_per_s: float
    goodput_per_s: float
    tokens_per_s: float
    errors: dict[str, int]
    lag_p99_s: float
    is_generator_limited: bool
    stages_s: dict[str, float]
    batch: dict[str, float]
    tenants: dict[str, dict[str, float]]

    def holds(self, objective: Objective) -> bool:
        return not self.is_generator_limited and self.latency_s[objective.quantile] <= objective.seconds


def summarize(name: str, outcomes: Outcomes, seconds: float, objective: Objective) -> Row:
    """`seconds` is what the schedule was drawn for."""
    latency = outcomes.latency_s
    is_answered = np.isfinite(latency)
    span_s = float(np.nanmax(outcomes.done_s, initial=seconds))
    lag_p99_s = quantiles(outcomes.lag_s)["p99"]
    schedule = outcomes.schedule
    return Row(
        name=name,
        rate=len(latency) / seconds,
        num_requests=len(latency),
        seconds=span_s,
        latency_s=quantiles(latency),
        answered_per_s=float(is_answered.sum()) / span_s,
        goodput_per_s=float((latency <= objective.seconds).sum()) / span_s,
        tokens_per_s=float(outcomes.num_tokens.sum()) / span_s,
        errors=_errors(outcomes.code),
        lag_p99_s=lag_p99_s,
        is_generator_limited=lag_p99_s > MAX_LAG_SHARE * objective.seconds,
        stages_s=_stages(outcomes, is_answered),
        batch=_batches(outcomes.batch[is_answered]),
        tenants={tenant: quantiles(latency[schedule.tenant == index]) for index, tenant in enumerate(schedule.tenants)},
    )


def quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    """By name; each is a value that was seen, never between two. 0 where there are none."""
    if not len(values):
        return dict.fromkeys(PERCENTILES, 0.0)
    by_size = np.sort(values)
    return {name: float(by_size[math.ceil(q * len(values)) - 1]) for name, q in PERCENTILES.items()}


def batch_adapters(outcomes: Outcomes) -> NDArray[np.int64]:
    """Distinct adapters of each forward pass."""
    return _passes(outcomes.batch[outcomes.code == 0])[:, 3]


def _errors(codes: NDArray[np.int64]) -> dict[str, int]:
    found, counts = np.unique(codes[codes != 0], return_counts=True)
    return {CODES.get(code, str(code)): count for code, count in zip(found.tolist(), counts.tolist(), strict=True)}


def _stages(outcomes: Outcomes, is_answered: NDArray[np.bool_]) -> dict[str, float]:
    if not is_answered.any():
        return dict.fromkeys((*STAGES, WIRE), 0.0)
    stages = outcomes.stages[is_answered]
    rest = outcomes.latency_s[is_answered] - stages.sum(axis=1)
    means = dict(zip(STAGES, stages.mean(axis=0).tolist(), strict=True))
    return means | {WIRE: max(0.0, float(rest.mean()))}


def _batches(batch: NDArray[np.int64]) -> dict[str, float]:
    if not len(batch):
        return dict.fromkeys(("samples", "tokens", "adapters"), 0.0)
    means = _passes(batch)[:, 1:].mean(axis=0).tolist()
    return dict(zip(("samples", "tokens", "adapters"), means, strict=True))


def _passes(batch: NDArray[np.int64]) -> NDArray[np.int64]:
    """One row per forward pass."""
    _, first = np.unique(batch[:, 0], return_index=True)
    return batch[first]
