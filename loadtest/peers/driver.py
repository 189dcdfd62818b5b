"""The comparison: every contender answers first, then all are timed in turn."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from loadtest.bench import machine
from loadtest.peers.contenders import PEERS, Contender, ours
from loadtest.peers.environments import python_of
from loadtest.peers.material import BASE, Material, make_material
from loadtest.peers.plan import Plan
from loadtest.peers.process import PeerFailed, Worker
from loadtest.peers.results import PeersReport, Row, distance, nearest, rate_ratio

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of |difference| / (1 + |ours|)


@dataclass(slots=True)
class Run:
    """A contender's way through the comparison. With an `error` it takes no further part.

    answers  one list of numbers per text, None where there was no room for the text's adapter
    """

    contender: Contender
    worker: Worker | None = None
    error: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    answers: Sequence[Sequence[float] | None] = ()
    difference: float | None = None
    budget: int = 0
    seconds: list[float] = field(default_factory=list)

    def ask(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """The worker's reply, or nothing and an `error`."""
        assert self.worker is not None
        try:
            return self.worker.ask(command, timeout_s, mode=self.contender.mode, **arguments)
        except PeerFailed as error:
            self.error = str(error)
            return {}


class PeersBench:
    """Run once. `peers` are all that a plan may name."""

    def __init__(self, plan: Plan, peers: Sequence[Contender] = PEERS) -> None:
        self._plan = plan
        self._peers = [peer for peer in peers if peer.key in plan.peers]

    def run(self) -> PeersReport:
        plan = self._plan
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, Progress(transient=True) as bar:
            task = bar.add_task("weights and texts", total=None)
            material = make_material(Path(folder), plan.base, plan.num_adapters, plan.num_tokens)
            runs = self._started(material, Path(folder), stack, lambda what: bar.update(task, description=what))
            for run in runs:
                bar.update(task, description=f"answers of {run.contender.title}")
                self._check(run, self._ours(run, runs))
            bar.update(task, description="rounds", total=plan.rounds, completed=0)
            for _ in range(plan.rounds):
                self._time(runs)
                bar.advance(task)
        rows = [_row(run, self._ours(run, runs), material, plan) for run in runs]
        return PeersReport(machine(plan.device, plan.dtype), plan.command, plan.workload, rows)

    def _started(self, material: Material, folder: Path, stack: ExitStack, tell: Callable[[str], None]) -> list[Run]:
        """Everybody loaded, in a process each; ours first."""
        workloads = dict.fromkeys(peer.workload for peer in self._peers)
        runs = [Run(contender) for contender in [*map(ours, workloads), *self._peers]]
        for number, run in enumerate(runs):
            tell(f"loading {run.contender.title}")
            try:
                python = self._python(run.contender, tell)
                log = folder / f"{number}.log"
                is_ours = run.contender.environment is None
                run.worker = Worker(python, run.contender.script, log, self._plan.threads, is_ours=is_ours)
                stack.enter_context(run.worker)
                run.info = run.worker.ask("load", self._plan.timeout_s, job=_job(self._plan, material, run.contender))
            except (PeerFailed, OSError) as error:
                run.error = str(error)
        return runs

    def _python(self, contender: Contender, tell: Callable[[str], None]) -> Path:
        if contender.environment is None:
            return Path(sys.executable)
        return python_of(contender.environment, self._plan.environments, tell)

    def _ours(self, run: Run, runs: Sequence[Run]) -> Run:
        """The one that `run` is compared with."""
        return next(other for other in runs if other.contender == ours(run.contender.workload))

    def _check(self, run: Run, own: Run) -> None:
        """Compare answers with ours at every budget, and choose the fastest."""
        best = float("inf")
        for budget in self._plan.budgets if run.contender.is_batched else (0,):
            if run.error:
                return
            self._compare(run, own, budget)
            if not run.error and (reply := run.ask("time", self._plan.timeout_s, budget=budget)):
                run.budget, best = min((run.budget, best), (budget, reply["seconds"]), key=lambda pair: pair[1])

    def _compare(self, run: Run, own: Run, budget: int) -> None:
        reply = run.ask("answer", self._plan.timeout_s, budget=budget)
        if run.error:
            return
        run.answers = reply["answers"]
        tolerance = TOLERANCE[self._plan.dtype]
        if run is own:
            self._check_that_adapters_matter(run, budget, tolerance)
        elif own.error:
            run.error = f"nothing to compare with: ours failed: {own.error}"
        else:
            run.difference = max(run.difference or 0.0, distance(run.answers, own.answers))
            if not run.difference <= tolerance:
                run.error = f"answers differ by {run.difference:.2g}, tolerance {tolerance:g}"

    def _check_that_adapters_matter(self, run: Run, budget: int, tolerance: float) -> None:
        """With each text's next adapter all answers change, so that a wrong one would show."""
        if run.contender.workload == BASE or self._plan.num_adapters == 1:
            return
        reply = run.ask("answer", self._plan.timeout_s, budget=budget, shift=1)
        if reply and nearest(run.answers, reply["answers"]) <= tolerance:
            run.error = "adapters do not differ enough to tell a wrong one"

    def _time(self, runs: Sequence[Run]) -> None:
        """One round: everybody in turn, so that a drifting machine hits all alike."""
        for run in runs:
            if not run.error and (reply := run.ask("time", self._plan.timeout_s, budget=run.budget)):
                run.seconds.append(reply["seconds"])


def _job(plan: Plan, material: Material, contender: Contender) -> dict[str, Any]:
    return {
        "base": str(material.base),
        "texts": str(material.texts),
        "adapters": [str(folder) for folder in material.adapters.get(contender.workload, ())],
        "threads": plan.threads,
        "device": plan.device,
        "dtype": plan.dtype,
        "memory_bytes": plan.memory_bytes,
    }


def _row(run: Run, own: Run, material: Material, plan: Plan) -> Row:
    contender, info = run.contender, run.info
    tasks = info.get("num_tasks") or (0 if contender.workload == BASE else plan.num_adapters)
    tokens = [_num_answered(material, each) for each in (own, run)]
    is_compared = run is not own and not run.error and not own.error
    return Row(
        key=contender.key,
        title=contender.title,
        workload=contender.workload,
        versions=info.get("versions", {}),
        ratio=rate_ratio(own.seconds, tokens[0], run.seconds, tokens[1]) if is_compared else None,
        target=contender.targets.get(plan.device.partition(":")[0]),
        difference=run.difference,
        budget=run.budget,
        num_tokens=tokens[1],
        num_tasks=tasks,
        bytes_per_task=info.get("bytes_per_task"),
        rss_bytes=info.get("rss_bytes"),
        seconds=run.seconds,
        error=run.error,
    )


def _num_answered(material: Material, run: Run) -> int:
    return sum(n for n, answer in zip(material.num_tokens, run.answers, strict=False) if answer is not None)
