"""Tenants that want more than there is: what each of them gets, and what one that asks for little feels of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rich.progress import Progress

from loadtest.bench import machine
from loadtest.crowd import Crowd, Got, crowd, got
from loadtest.figures import Figure, at_least, at_most
from loadtest.overload import EVERYBODY

TOLERANCE, P95_GROWTH, FIFO_SHARE = 0.05, 1.10, 0.95
WANTED = 3.0  # times what the server can answer, of each tenant that is backlogged
NOISE = 50.0  # times its share, of the noisy one
BUSY, LIGHT = 0.9, 0.2  # of its own share, that the other one asks for
SHARES = {"equal weights": {"a": 1.0, "b": 1.0}, "weights 1 and 3": {"a": 1.0, "b": 3.0}}


@dataclass(frozen=True, slots=True)
class Plan:
    """rounds   of a busy tenant beside a calm and a noisy one, in turn; a light one gets one round
    frontends   processes of their own that talk to callers; 0: the one that computes does
    """

    base: str = "bert-base"
    seconds: float = 30.0
    warm_up_s: float = 10.0
    window_s: float = 10.0
    rounds: int = 3
    noise: float = NOISE
    frontends: int = 0

    @property
    def settings(self) -> list[str]:
        return [f"api.frontends={self.frontends}"] if self.frontends else []


@dataclass(frozen=True, slots=True)
class Divided:
    """Tokens of two backlogged tenants. `error` is the largest of any window: |b / a / wanted - 1|."""

    name: str
    tokens_per_s: dict[str, float]
    error: float


@dataclass(frozen=True, slots=True)
class Beside:
    """p95 of one that asks for `share` of its own share, beside another at its share and far beyond."""

    share: float
    calm_p95_s: float
    noisy_p95_s: float


@dataclass(slots=True)
class FairnessReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    saturated_per_s: float
    fifo_tokens_per_s: float
    divided: list[Divided] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)

    @property
    def figures(self) -> tuple[Figure, ...]:
        growth = _median([row.noisy_p95_s / row.calm_p95_s for row in self.beside if row.share == BUSY])
        work = min(sum(row.tokens_per_s.values()) for row in self.divided)
        return (
            *(
                at_most(f"{row.name}: tokens off their shares in {self.plan.window_s:g} s", row.error, TOLERANCE)
                for row in self.divided
            ),
            at_most(
                f"p95 of a tenant beside one at {self.plan.noise:g} x its share / at its share", growth, P95_GROWTH
            ),
            at_least("tokens/s of tenants / of one queue for all", work / self.fifo_tokens_per_s, FIFO_SHARE),
        )


def run(plan: Plan, command: str) -> FairnessReport:
    shares = [BUSY] * plan.rounds + [LIGHT]
    with Progress(transient=True) as bar:
        task = bar.add_task("one queue for all", total=2 + len(SHARES) + len(shares))
        with crowd(plan.base, {}, settings=plan.settings) as server:
            per_s, tokens_per_s = _saturated(server, plan)
        report = FairnessReport(machine("cpu", "float32"), command, plan, per_s, tokens_per_s)
        for name, weights in SHARES.items():
            bar.update(task, advance=1, description=name)
            with crowd(plan.base, weights, settings=plan.settings) as server:
                report.divided.append(_divide(server, plan, name, weights, per_s))
        with crowd(plan.base, SHARES["equal weights"], settings=plan.settings) as server:
            for number, share in enumerate(shares):
                bar.update(task, advance=1, description=f"a tenant at {share:g} of its share")
                calm, noisy = (_p95(server, plan, per_s, noise, share, number) for noise in (1.0, plan.noise))
                report.beside.append(Beside(share, calm, noisy))
        bar.update(task, advance=1, description="one queue for all, again")
        with crowd(plan.base, {}, settings=plan.settings) as server:
            again = _everybody(server, plan, 2 * WANTED * per_s)
            report.fifo_tokens_per_s = (tokens_per_s + again.tokens / again.seconds) / 2
    return report


def _saturated(server: Crowd, plan: Plan) -> tuple[float, float]:
    """Requests and tokens a second of a server that has more than enough to do."""
    rate = 10.0
    while rate <= 1.5 * (whole := _everybody(server, plan, rate)).answered_per_s:
        rate *= 3
    if not whole.tokens:
        raise RuntimeError("the server answered nothing; measure for longer")
    return whole.answered_per_s, whole.tokens / whole.seconds


def _everybody(server: Crowd, plan: Plan, rate: float) -> Got:
    end = plan.warm_up_s + plan.seconds
    return got(server.fire({EVERYBODY: rate}, end, int(rate)), plan.warm_up_s, end)


def _divide(server: Crowd, plan: Plan, name: str, weights: dict[str, float], per_s: float) -> Divided:
    end = plan.warm_up_s + plan.seconds
    outcomes = server.fire(dict.fromkeys(weights, WANTED * per_s), end, seed=1)
    wanted = weights["b"] / weights["a"]
    errors, since = [], plan.warm_up_s
    while since + plan.window_s <= end:
        a, b = (got(outcomes, since, since + plan.window_s, number).tokens for number in range(2))
        errors.append(abs(b / a / wanted - 1) if a else float("inf"))
        since += plan.window_s
    whole = [got(outcomes, plan.warm_up_s, end, number) for number in range(2)]
    rates = {tenant: own.tokens / own.seconds for tenant, own in zip(weights, whole, strict=True)}
    return Divided(name, rates, max(errors))


def _p95(server: Crowd, plan: Plan, per_s: float, noise: float, share: float, seed: int) -> float:
    """Of b, which asks at the same times whatever a does. What was refused counts as endless.

    noise, share   what a and b ask for, times their shares: a half each
    """
    end = plan.warm_up_s + plan.seconds
    outcomes = server.fire({"a": noise / 2 * per_s, "b": share / 2 * per_s}, end, seed)
    is_due = (outcomes.schedule.tenant == 1) & (outcomes.schedule.at_s >= plan.warm_up_s)
    latency = np.sort(outcomes.latency_s[is_due])
    return float(latency[int(0.95 * len(latency))]) if len(latency) else float("inf")


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
