"""A real server under load: saturation, the highest rate that holds an objective, scenarios."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest import offline
from loadtest.arrivals import Catalog, schedule
from loadtest.bench import machine
from loadtest.client import START_S, Order, Outcomes
from loadtest.closed_loop import Flood, Flow
from loadtest.deployment import Deployment, deploy
from loadtest.figures import Figure, at_least
from loadtest.generators import Generators
from loadtest.latency import Row, summarize
from loadtest.scenarios import COLD, SCENARIOS, ZIPF, Plan
from loadtest.sweep import highest_rate

SERVED = "served over gRPC / offline, 32-token texts, at saturation"
CPU_TARGET, CUDA_TARGET = 0.9, 0.8
FIRST_SHARE = 0.3  # of saturation: where the sweep starts
SCENARIO_SHARE = 0.7  # of the highest rate that holds: what scenarios run at
NUM_IN_WINDOW = 300  # requests, for a p99 that is more than one of them; a window grows for it
NUM_CALLS = 16  # of PredictBatch, at a time, at saturation
IN_FLIGHT_S = 2.0  # how much work they are to hold, by the rate of the warm-up
IN_FLIGHT_PER_CALL = (8, 60)  # requests of a call; all calls together stay within the server's max_in_flight
MAX_GROWTH = 3.0  # of a window of the sweep

Raw = dict[str, Outcomes]  # of each scenario, for plots


@dataclass(frozen=True, slots=True)
class Saturation:
    """Round by round, the two in turn; offline is empty where the engine is not at hand."""

    served: tuple[Flow, ...]
    offline_tokens_per_s: tuple[float, ...] = ()

    @property
    def requests_per_s(self) -> float:
        return statistics.median(flow.requests_per_s for flow in self.served)

    @property
    def tokens_per_s(self) -> float:
        return statistics.median(flow.tokens_per_s for flow in self.served)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' own."""
        pairs = zip(self.served, self.offline_tokens_per_s, strict=False)
        ratios = [flow.tokens_per_s / alone for flow, alone in pairs]
        return statistics.median(ratios) if ratios else None


@dataclass(slots=True)
class ServeReport:
    """highest_rate   requests a second, 0 where nothing held, None where it was not looked for"""

    plan: Plan
    machine: dict[str, str]
    command: str
    saturation: Saturation
    figures: list[Figure] = field(default_factory=list)
    highest_rate: float | None = None
    sweep: list[Row] = field(default_factory=list)
    scenarios: list[Row] = field(default_factory=list)


def run(plan: Plan) -> tuple[ServeReport, Raw]:
    """Start what has to run, measure, and stop it again."""
    with ExitStack() as stack:
        bar = stack.enter_context(_Bar(plan.seconds))
        bar.show("starting")
        engine = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        if not plan.server:
            engine.submit(offline.ready)  # imports while the server starts
        deployment = stack.enter_context(deploy(plan))
        generators = stack.enter_context(Generators(plan.num_generators))
        return _Bench(plan, deployment, generators, engine, bar).run()


class _Bench:
    def __init__(
        self, plan: Plan, deployment: Deployment, generators: Generators, engine: ProcessPoolExecutor, bar: _Bar
    ) -> None:
        self._plan, self._deployment = plan, deployment
        self._generators, self._engine, self._bar = generators, engine, bar
        self._per_call = IN_FLIGHT_PER_CALL[0]

    def run(self) -> tuple[ServeReport, Raw]:
        plan = self._plan
        self._prepare()
        until = self._bar.begin() + plan.seconds
        saturation = self._saturate()
        report = ServeReport(plan, machine(plan.device, plan.dtype), plan.command, saturation)
        if saturation.ratio is not None:
            limit = CUDA_TARGET if self._deployment.is_cuda else CPU_TARGET
            report.figures.append(at_least(SERVED, saturation.ratio, limit))
        names = [name for name in plan.scenarios if self._deployment.cold or name != COLD]
        rate = plan.rate
        if not rate:
            first = FIRST_SHARE * saturation.requests_per_s
            report.highest_rate = self._sweep(report.sweep, first, until - 1.2 * len(names) * plan.step_s)
            rate = SCENARIO_SHARE * (report.highest_rate or first)
        raw = {}
        for number, name in enumerate(names):
            left_s = (until - time.monotonic()) / (len(names) - number) - START_S
            row, raw[name] = self._window(name, name, rate, plan.seed + number, left_s)
            report.scenarios.append(row)
        return report, raw

    def _prepare(self) -> None:
        """Load both engines, and hold their adapters against each other."""
        deployment = self._deployment
        if deployment.offline is not None:
            self._bar.show("loading the engine for the offline runs")
            theirs: Future[tuple[str, ...]] = self._engine.submit(offline.digests, deployment.offline)
            if theirs.result() != deployment.digests:
                raise RuntimeError("the server and the offline engine read the same adapters differently")
        self._bar.show("warming up")
        rate = self._flood(min(2.0, self._plan.step_s)).requests_per_s
        least, most = IN_FLIGHT_PER_CALL
        self._per_call = max(least, min(most, round(rate * IN_FLIGHT_S / NUM_CALLS)))

    def _saturate(self) -> Saturation:
        served, alone = [], []
        for number in range(self._plan.rounds):
            self._bar.show(f"saturation, round {number + 1} of {self._plan.rounds}")
            served.append(self._flood(self._plan.step_s))
            if self._deployment.offline is not None:
                budget = max(flow.max_batch_tokens for flow in served)
                alone.append(self._run_offline(self._deployment.offline, budget))
        return Saturation(tuple(served), tuple(alone))

    def _flood(self, seconds: float) -> Flow:
        deployment = self._deployment
        return self._generators.flood(
            Flood(deployment.server, deployment.names, deployment.equal_texts, seconds, self._per_call, NUM_CALLS)
        )

    def _run_offline(self, engine: offline.Offline, max_batch_tokens: int) -> float:
        return self._engine.submit(offline.measure, engine, max_batch_tokens, self._plan.step_s).result()

    def _sweep(self, rows: list[Row], first: float, until: float) -> float:
        objective = self._plan.objective

        def holds(rate: float) -> bool:
            seed = self._plan.seed + len(SCENARIOS) + len(rows)
            row, _ = self._window(f"{rate:.0f}/s", ZIPF, rate, seed, MAX_GROWTH * self._plan.step_s)
            rows.append(row)
            return row.holds(objective)

        return highest_rate(holds, first, lambda: time.monotonic() >= until)

    def _window(self, name: str, scenario: str, rate: float, seed: int, most_s: float) -> tuple[Row, Outcomes]:
        """One open loop, as long as enough requests need but no more than `most_s`, and a step at least.

        The server is idle again at its end.
        """
        plan, deployment = self._plan, self._deployment
        self._bar.show(f"{name} at {rate:.0f}/s")
        seconds = max(plan.step_s, min(NUM_IN_WINDOW / rate, most_s))
        catalog = Catalog(len(deployment.names), len(deployment.cold), len(deployment.mixed_texts))
        outcomes = self._generators.fire(
            Order(
                server=deployment.server,
                names=(*deployment.names, *deployment.cold),
                texts=deployment.mixed_texts,
                schedule=schedule(SCENARIOS[scenario], rate, seconds, catalog, seed),
                cold_from=len(deployment.names),
                timeout_s=plan.timeout_s,
                rpc=plan.rpc,
            )
        )
        return summarize(name, outcomes, seconds, plan.objective), outcomes


class _Bar(Progress):
    """Seconds measured, of those that may be."""

    def __init__(self, seconds: float) -> None:
        super().__init__(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._task = self.add_task("", total=seconds)
        self._began = time.monotonic()

    def begin(self) -> float:
        self.reset(self._task)
        self._began = time.monotonic()
        return self._began

    def show(self, description: str) -> None:
        self.update(self._task, description=description, completed=time.monotonic() - self._began)
