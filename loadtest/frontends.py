"""Calls/s and CPU time per call of one process and of front processes before an engine process."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from adapterd import Client, predict_request
from loadtest.bench import machine
from loadtest.callers import Callers, Load, callers
from loadtest.children import serving
from loadtest.tiny import make_adapters, make_base, make_text

NUM_ADAPTERS = 8
NUM_WORDS = 30  # of a text: 32 tokens
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Plan:
    """frontends   the forms to compare with 0, which is one process"""

    frontends: tuple[int, ...]
    num_callers: int
    num_connections: int
    num_in_flight: int
    seconds: float
    rounds: int


@dataclass(slots=True)
class Row:
    """Of one form, a value per round. CPU times are microseconds per call: of the engine process, and of all fronts."""

    frontends: int
    calls_per_s: list[float] = field(default_factory=list)
    engine_us: list[float] = field(default_factory=list)
    fronts_us: list[float] = field(default_factory=list)
    callers_us: list[float] = field(default_factory=list)

    def ratio(self, other: Row) -> float:
        """How many times the calls/s of `other`: the median over rounds of the two runs of one round."""
        return statistics.median(a / b for a, b in zip(self.calls_per_s, other.calls_per_s, strict=True))


@dataclass(frozen=True, slots=True)
class FrontendsReport:
    plan: Plan
    machine: dict[str, str]
    num_cores: int
    command: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class _Server:
    """A server of this benchmark's own."""

    address: str
    engine: int
    fronts: tuple[int, ...]


def run(plan: Plan) -> FrontendsReport:
    """Every form in turn, round by round, so that a drifting machine hits all alike."""
    rows = [Row(number) for number in (0, *plan.frontends)]
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name, ExitStack() as stack:
        folder = Path(name)
        base = make_base(folder / "base")
        names = make_adapters(base, folder / "adapters", NUM_ADAPTERS)
        servers = [stack.enter_context(_serving(base, folder / "adapters", row.frontends)) for row in rows]
        processes = stack.enter_context(callers(plan.num_callers))
        bar = stack.enter_context(Progress())
        task = bar.add_task("frontends", total=(plan.rounds + 1) * len(rows))
        for number in range(plan.rounds + 1):
            for row, server in zip(rows, servers, strict=True):
                bar.update(task, description=f"{row.frontends} fronts")
                _measure(row if number else Row(0), server, processes, names, plan)  # the first round warms up
                bar.advance(task)
    return FrontendsReport(plan, machine("cpu", "float32"), os.cpu_count() or 1, _command(plan), tuple(rows))


def _measure(row: Row, server: _Server, processes: Callers, names: Sequence[str], plan: Plan) -> None:
    messages = tuple(
        predict_request(name, make_text(NUM_WORDS, seed)).SerializeToString() for seed, name in enumerate(names)
    )
    load = Load(server.address, messages, plan.num_connections, plan.num_in_flight, plan.seconds)
    engine, fronts = _cpu_s([server.engine]), _cpu_s(server.fronts)
    counts = processes.run(load)
    engine, fronts = _cpu_s([server.engine]) - engine, _cpu_s(server.fronts) - fronts
    num_calls = sum(count.num_calls for count in counts)
    row.calls_per_s.append(sum(count.num_calls / count.seconds for count in counts))
    row.engine_us.append(engine / num_calls * 1e6)
    row.fronts_us.append(fronts / num_calls * 1e6)
    row.callers_us.append(sum(count.cpu_s for count in counts) / num_calls * 1e6)


def _cpu_s(pids: Sequence[int]) -> float:
    """Seconds of CPU that processes have used since they started, by the system's clock ticks."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) * TICK_S  # in user mode, in the kernel
    return total


@contextmanager
def _serving(base: Path, adapters: Path, frontends: int) -> Iterator[_Server]:
    options = ["--base", str(base), "--adapters", str(adapters), "--frontends", str(frontends)]
    with serving(*options, "--device", "cpu", "--set", "model.num_threads=1") as (address, engine):
        with Client(address) as client:
            for adapter in client.list():
                client.load(adapter.name)
        children = Path(f"/proc/{engine}/task/{engine}/children").read_text().split()
        yield _Server(address, engine, tuple(int(pid) for pid in children))


def _command(plan: Plan) -> str:
    fronts = " ".join(f"--frontends {number}" for number in plan.frontends)
    return (
        f"python -m loadtest frontends {fronts} --callers {plan.num_callers} --connections {plan.num_connections}"
        f" --in-flight {plan.num_in_flight} --seconds {plan.seconds:g} --rounds {plan.rounds}"
    )
