"""More requests than a server can answer: what it still does, how long the accepted wait, what a refusal costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.progress import Progress

from loadtest.bench import machine
from loadtest.crowd import Crowd, Got, crowd, got
from loadtest.figures import Figure, at_least, at_most

FACTORS = (1, 2, 5, 10)  # of the rated load
RATED_SHARE = 0.9  # of what the server answers when it has more than enough to do
PEAK_SHARE, P99_GROWTH, REFUSAL_S, GROWTH_MIB = 0.95, 1.5, 0.010, 50.0
REFUSALS = "adapterd_refusal_duration_seconds"
EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True)
class Plan:
    """warm_up_s   of each load; what happens in it is not counted: an overload begins with a queue that fills
    frontends   processes of their own that talk to callers; 0: the one that computes does
    """

    base: str = "bert-base"
    seconds: float = 40.0
    warm_up_s: float = 15.0
    frontends: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One load. `refusal_p99_s` is the upper edge of the histogram's bucket, as the server saw it."""

    factor: int
    offered_per_s: float
    answered_per_s: float
    p50_s: float
    p99_s: float
    num_refused: int
    num_failed: int
    refusal_p99_s: float
    memory_mib: float


@dataclass(frozen=True, slots=True)
class OverloadReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    saturated_per_s: float
    rows: list[Row]

    @property
    def peak_per_s(self) -> float:
        return max(self.saturated_per_s, *(row.answered_per_s for row in self.rows))

    @property
    def figures(self) -> tuple[Figure, ...]:
        first, beyond = self.rows[0], self.rows[1:]
        return (
            at_least("least goodput beyond the rated load / peak", self._least / self.peak_per_s, PEAK_SHARE),
            at_most("largest p99 of the accepted / at the rated load", self._largest / first.p99_s, P99_GROWTH),
            at_most("p99 of refusals, ms", 1000 * max(row.refusal_p99_s for row in beyond), 1000 * REFUSAL_S),
            at_most("memory over the rated load's, MiB", self._most_mib - first.memory_mib, GROWTH_MIB),
            at_most("requests that failed otherwise", sum(row.num_failed for row in self.rows), 0),
        )

    @property
    def _least(self) -> float:
        return min(row.answered_per_s for row in self.rows[1:])

    @property
    def _most_mib(self) -> float:
        return max(row.memory_mib for row in self.rows[1:])

    @property
    def _largest(self) -> float:
        return max(row.p99_s for row in self.rows[1:])


def run(plan: Plan, command: str) -> OverloadReport:
    settings = [f"api.frontends={plan.frontends}"] if plan.frontends else []
    with crowd(plan.base, {}, settings=settings) as server, Progress(transient=True) as bar:
        task = bar.add_task("saturation", total=len(FACTORS) + 1)
        saturated = _saturated(server, plan)
        rows = []
        for number, factor in enumerate(FACTORS):
            bar.update(task, advance=1, description=f"{factor} x the rated load")
            rows.append(_row(server, plan, factor, factor * RATED_SHARE * saturated, number))
    return OverloadReport(machine("cpu", "float32"), command, plan, saturated, rows)


def _saturated(server: Crowd, plan: Plan) -> float:
    """Requests a second that are answered where more are offered, found in two steps."""
    rate = 10.0
    while rate <= 1.5 * (found := _measured(server, plan, rate, seed=int(rate)).answered_per_s):
        rate *= 3
    if not found:
        raise RuntimeError("the server answered nothing; measure for longer")
    return found


def _measured(server: Crowd, plan: Plan, rate: float, seed: int) -> Got:
    outcomes = server.fire({EVERYBODY: rate}, plan.warm_up_s + plan.seconds, seed)
    return got(outcomes, plan.warm_up_s, plan.warm_up_s + plan.seconds)


def _row(server: Crowd, plan: Plan, factor: int, rate: float, seed: int) -> Row:
    before = server.server.metrics()
    found = _measured(server, plan, rate, seed)
    return Row(
        factor=factor,
        offered_per_s=found.offered_per_s,
        answered_per_s=found.answered_per_s,
        p50_s=found.quantile(0.5),
        p99_s=found.quantile(0.99),
        num_refused=found.num_refused,
        num_failed=found.num_failed,
        refusal_p99_s=edge_of(before, server.server.metrics(), 0.99),
        memory_mib=server.server.memory_mib,
    )


def edge_of(before: Mapping[str, float], after: Mapping[str, float], q: float) -> float:
    """Upper edge of the bucket that holds the quantile of what came between; 0 if nothing did."""
    prefix = f'{REFUSALS}_bucket{{le="'
    edges = {float(key[len(prefix) : -2]): after[key] - before.get(key, 0) for key in after if key.startswith(prefix)}
    total = max(edges.values(), default=0.0)
    return min((edge for edge, count in edges.items() if total and count >= q * total), default=0.0)
