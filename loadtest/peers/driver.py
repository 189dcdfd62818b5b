"""The comparison: every contender answers first, then all are timed in turn."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import Progress

from loadtest.bench import machine
from loadtest.peers.contenders import PEERS, Contender, ours
from loadtest.peers.environments import python_of
from loadtest.peers.material import BASE, Material, make_material
from loadtest.peers.plan import Plan
from loadtest.peers.process import PeerFailed, Worker
from loadtest.peers.results import PeersReport, Row, distance, nearest, rate_ratio

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of |difference| / (1 + |ours|)
MAX_SHOWN_CHARS = 60  # of what an installer says, beside the bar


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
            runs = self._started(
                material, Path(folder), stack, lambda what: bar.update(task, description=escape(what[:MAX_SHOWN_CHARS]))
            )
            for run in runs:
                bar.update(task, description=f"answers of {run.contender.title}")
                self._check(run, self._ours(run, runs))
            bar.update(task, description="rounds", total=plan.rounds, completed=0)
            for _ in range(plan.rounds):
                self._time(runs)
                bar.advance(task)
        rows = [_row(run, self._ours(run, runs), material, plan) for run in runs]
        return PeersReport(machine(plan.device, plan.dtype), plan.command, plan.workload, rows, plan.base)

    def _started(self, material: Material, folder: Path, stack: ExitStack, tell: Callable[[str], None]) -> list[Run]:
        """Everybody loaded, in a process each; ours first."""
        workloads = dict.fromkeys(peer.workload for peer in self._peers)
        runs = [Run(contender) for contender in [*map(ours, workloads), *self._peers]]
        for number, run in enumerate(runs):  # all of them import what they need while others are loading
            try:
                log = folder / f"{number}.log"
                run.worker = stack.enter_context(self._worker(run.contender, log, tell))
            except (PeerFailed, OSError) as error:
                run.error = str(error)
        for run in runs:
            tell(f"loading {run.contender.title}")
            if not run.error:
                run.info = self._ask(run, "load", job=_job(self._plan, material, run.contender))
        return runs

    def _worker(self, contender: Contender, log: Path, tell: Callable[[str], None]) -> Worker:
        is_ours, python = contender.environment is None, Path(sys.executable)
        if contender.environment is not None:
            python = python_of(contender.environment, self._plan.environments, tell)
        return Worker(python, contender.script, log, self._plan.threads, is_ours=is_ours)

    def _ours(self, run: Run, runs: Sequence[Run]) -> Run:
        """The one that `run` is compared with."""
        return next(other for other in runs if other.contender == ours(run.contender.workload))

    def _check(self, run: Run, own: Run) -> None:
        """Compare answers at every budget with ours at its first, and choose the fastest."""
        best = float("inf")
        for budget in self._plan.budgets if run.contender.is_batched else (0,):
            if run.error:
                return
            self._compare(run, own, budget)
            if not run.error and (reply := self._ask(run, "time", mode=run.contender.mode, budget=budget)):
                run.budget, best = min((run.budget, best), (budget, reply["seconds"]), key=lambda pair: pair[1])

    def _compare(self, run: Run, own: Run, budget: int) -> None:
        reply = self._ask(run, "answer", mode=run.contender.mode, budget=budget)
        if run.error:
            return
        is_first, tolerance = run is own and not run.answers, TOLERANCE[self._plan.dtype]
        run.answers = run.answers or reply["answers"]
        if is_first:
            self._check_that_adapters_matter(run, budget, tolerance)
        elif own.error:
            run.error = f"nothing to compare with: ours failed: {own.error}"
        else:
            run.difference = max(run.difference or 0.0, distance(reply["answers"], own.answers))
            if not run.difference <= tolerance:
                run.error = f"answers differ by {run.difference:.2g}, tolerance {tolerance:g}"

    def _check_that_adapters_matter(self, run: Run, budget: int, tolerance: float) -> None:
        """With each text's next adapter all answers change, so that a wrong one would show."""
        if run.contender.workload == BASE or self._plan.num_adapters == 1:
            return
        reply = self._ask(run, "answer", mode=run.contender.mode, budget=budget, shift=1)
        if reply and nearest(run.answers, reply["answers"]) <= tolerance:
            run.error = "adapters do not differ enough to tell a wrong one"

    def _time(self, runs: Sequence[Run]) -> None:
        """One round: everybody in turn, so that a drifting machine hits all alike."""
        for run in runs:
            if not run.error and (reply := self._ask(run, "time", mode=run.contender.mode, budget=run.budget)):
                run.seconds.append(reply["seconds"])

    def _ask(self, run: Run, command: str, **arguments: Any) -> dict[str, Any]:
        """The worker's reply, or nothing and the run's `error`."""
        assert run.worker is not None
        try:
            return run.worker.ask(command, self._plan.timeout_s, **arguments)
        except PeerFailed as error:
            run.error = str(error)
            return {}


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
