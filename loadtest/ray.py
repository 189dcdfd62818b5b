"""Replicas on a local Ray, killed one way after the other under load: what callers with retries notice of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import psutil
from rich.progress import Progress

from adapterd import AsyncClient, Error
from adapterd.v1 import replicas_pb2, replicas_pb2_grpc
from loadtest import markdown
from loadtest.bench import machine
from loadtest.deployment import publish
from loadtest.figures import Figure, at_least, at_most
from loadtest.fleet.material import save_small_base
from loadtest.html import Report, Section, Table, write_json
from server.config import ModelConfig
from server.model.base import load_base

NUM_REPLICAS, NUM_ADAPTERS, NUM_CALLERS = 2, 40, 6
TOKENS = [list(range(5, 21))]
PAUSE_S = 0.02  # of a caller between calls: on two cores something has to be left for what starts
SLOW_S = 0.5  # a call that somebody notices
CALM_S = 2.0  # before a fault, and after all is well again
LIMIT_S = 90.0
LOOK_S = 0.05
LOOK_TIMEOUT_S = 2.0
TIMEOUT_S = 20.0  # of a call
STOP_S = 60.0
LOCAL = ("--on", "ray", "--json", "--replicas", str(NUM_REPLICAS), "--cpus-per-replica", "0.5")
TARGETS = "targets.json"
SERVER, MEMBERS, REPLICA = "server.ray.guard", "ray::Members", "ray::ServeReplica"

RULES = f"""\
A small BERT and {NUM_ADAPTERS} adapters on {NUM_REPLICAS} replicas of `adapterd cluster --on ray`, on one machine.
{NUM_CALLERS} callers with retries share an `AsyncClient("cluster:...")`; each waits {PAUSE_S * 1000:g} ms after a call.
Each fault is a SIGKILL, but the drain, which is a SIGTERM. Noticed until: from the fault to the end of the last
call that took more than {SLOW_S:g} s; 0 where none did. Unlisted after: the other replica's list is without it. Back
after: the list has as many as before; what replaces it has to load Python, torch and the base anew, on the cores that
callers and the other replica use. Home: of all answers after that, the share that came from the replica that answered
most for their adapter."""


@dataclass(slots=True)
class Cluster:
    """A command that runs, and its replicas as far as they are known."""

    pid: int
    addresses: tuple[str, ...]
    folder: Path  # HOME, Ray's files and `TARGETS`; gone with it

    @property
    def server(self) -> str:
        return f"cluster:{','.join(self.addresses)}"

    def processes(self, kind: str = "") -> list[psutil.Process]:
        """Those below the command whose command line has `kind`, oldest first."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                if kind in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return sorted(found, key=psutil.Process.create_time)


@contextmanager
def clustered(*arguments: str) -> Iterator[Cluster]:
    """`adapterd cluster` with these arguments, once it serves; stopped at the end, with all that it left on disk gone.

    Raises RuntimeError with what the command said if it ends before.
    """
    folder = Path(tempfile.mkdtemp(prefix="r-"))  # a short path: sockets are in it
    targets = ("--scrape-targets", str(folder / TARGETS))
    command = [sys.executable, "-m", "server", "cluster", *targets, *arguments]
    environment = os.environ | {"HOME": str(folder), "RAY_TMPDIR": str(folder)}
    try:
        with (folder / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
            assert process.stdout is not None
            try:
                told = process.stdout.readline()
                if not told:
                    log.seek(0)
                    raise RuntimeError(f"the command ended before it served:\n{log.read()}")
                yield Cluster(process.pid, tuple(json.loads(told)["addresses"]), folder)
            finally:
                process.terminate()
                process.wait(STOP_S)
                process.stdout.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class Calls:
    """What became of calls."""

    num_answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    last_slow_at: float = 0.0
    slowest_s: float = 0.0
    replicas: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    is_over: bool = False

    def home_share(self) -> float:
        """Of the answers, those from the replica that answers most for their adapter."""
        most = sum(max(counts.values()) for counts in self.replicas.values())
        return most / max(1, sum(counts.total() for counts in self.replicas.values()))


async def _ask(client: AsyncClient, names: Sequence[str], calls: Calls) -> None:
    number = 0
    while not calls.is_over:
        name = names[number % len(names)]
        number += 1
        began = time.monotonic()
        try:
            answer = await client.predict(name, tokens=TOKENS, timeout=TIMEOUT_S)
        except Error as error:
            calls.failures[f"{error} {error.reason}".strip()] += 1
        else:
            calls.num_answered += 1
            calls.replicas[name][answer.replica] += 1
        took = time.monotonic() - began
        calls.slowest_s = max(calls.slowest_s, took)
        if took > SLOW_S:
            calls.last_slow_at = time.monotonic()
        await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def asking(client: AsyncClient, names: Sequence[str]) -> AsyncIterator[Calls]:
    """Callers, each of whom begins elsewhere in the list, until the end."""
    calls = Calls()
    step = max(1, len(names) // NUM_CALLERS)
    tasks = [
        asyncio.create_task(_ask(client, [*names[at * step :], *names[: at * step]], calls))
        for at in range(NUM_CALLERS)
    ]
    try:
        yield calls
    finally:
        calls.is_over = True
        await asyncio.gather(*tasks)


@dataclass(frozen=True, slots=True)
class Row:
    """`home`: share of the answers afterwards that came from their adapter's one replica."""

    name: str
    noticed_s: float
    slowest_s: float
    unlisted_s: float
    back_s: float
    num_answered: int
    failures: dict[str, int]  # how often by what the client said
    home: float

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values())


@dataclass(frozen=True, slots=True)
class RayReport:
    machine: dict[str, str]
    command: str
    rows: list[Row]

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            at_most("calls lost", sum(row.num_failed for row in self.rows), 0),
            at_most("longest time until nobody noticed it any more, s", max(row.noticed_s for row in self.rows), 10.0),
            at_least("least share of answers from home", min(row.home for row in self.rows), 1.0),
            at_most("longest time until all replicas were back, s", max(row.back_s for row in self.rows), 60.0),
        )


def kill_server(cluster: Cluster) -> None:
    """The server itself: its Ray worker lives, and finds that it is gone."""
    cluster.processes(SERVER)[0].send_signal(signal.SIGKILL)


def kill_worker(cluster: Cluster) -> None:
    """The Ray worker: its server finds that it is gone, answers what it has accepted, and ends."""
    cluster.processes(REPLICA)[0].send_signal(signal.SIGKILL)


def drain_server(cluster: Cluster) -> None:
    cluster.processes(SERVER)[0].send_signal(signal.SIGTERM)


def kill_members(cluster: Cluster) -> None:
    """The actor that knows who lives: nobody is gone, and no list may say so."""
    cluster.processes(MEMBERS)[0].send_signal(signal.SIGKILL)


FAULTS: dict[str, tuple[Callable[[Cluster], None], bool]] = {  # and whether a replica goes with it
    "server killed": (kill_server, True),
    "Ray worker killed": (kill_worker, True),
    "server drained": (drain_server, True),
    "members actor killed": (kill_members, False),
}


class Watch:
    """Looks at the list of replicas, at whichever of those that it has heard of answers."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._known = list(addresses)

    async def listed(self) -> set[str]:
        """As it was where none of them answers now."""
        for address in self._known:
            async with grpc.aio.insecure_channel(address) as channel:
                stub = replicas_pb2_grpc.ReplicasStub(channel)  # type: ignore[no-untyped-call]
                with suppress(grpc.RpcError):
                    found = set((await stub.List(replicas_pb2.ListReplicasRequest(), timeout=LOOK_TIMEOUT_S)).addresses)
                    if not found:
                        continue  # it has just come, and knows nobody
                    self._known = [*(one for one in self._known if one in found), *(found - set(self._known))]
                    break
        return set(self._known)


async def _until(watch: Watch, is_so: Callable[[set[str]], bool], began: float) -> float:
    """Seconds from `began` until the list is so."""
    async with asyncio.timeout(LIMIT_S):
        while not is_so(await watch.listed()):
            await asyncio.sleep(LOOK_S)
    return time.monotonic() - began


async def row_of(fault: str, cluster: Cluster, names: Sequence[str], calm_s: float = CALM_S) -> Row:
    """One fault on a cluster that has all its replicas."""
    make, is_loss = FAULTS[fault]
    async with AsyncClient(cluster.server) as client:
        for name in names:
            await client.load(name)
        async with asking(client, names) as calls:
            await asyncio.sleep(calm_s)
            assert not calls.failures, calls.failures
            calls.slowest_s = 0.0
            watch = Watch(cluster.addresses)
            before = await watch.listed()
            make(cluster)
            began = time.monotonic()
            unlisted_s = back_s = 0.0
            if is_loss:
                unlisted_s = await _until(watch, lambda listed: not before <= listed, began)
                back_s = await _until(watch, lambda listed: len(listed) == len(before), began)
                await asyncio.sleep(calm_s)  # clients hear of it every second
            else:
                await asyncio.sleep(4 * calm_s)
                assert await watch.listed() == before
            noticed_s = max(0.0, calls.last_slow_at - began)
        async with asking(client, names) as after:
            await asyncio.sleep(calm_s)
    failures = dict(calls.failures + after.failures)
    answered = calls.num_answered + after.num_answered
    cluster.addresses = tuple(sorted(await watch.listed()))
    return Row(fault, noticed_s, calls.slowest_s, unlisted_s, back_s, answered, failures, after.home_share())


@contextmanager
def started(*options: str) -> Iterator[tuple[Cluster, tuple[str, ...]]]:
    """A cluster, and the names of its adapters.

    options   more of the command
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        save_small_base(folder / "base")
        base = load_base(ModelConfig(base=str(folder / "base"), dtype="float32"))
        names = tuple(path.name for path in publish(base, folder / "adapters", NUM_ADAPTERS))
        server = (
            "--base",
            str(folder / "base"),
            "--adapters",
            str(folder / "adapters"),
            "--disk",
            str(folder / "disk"),
        )
        computing = ("--device", "cpu", "--dtype", "float32", "--batch-tokens", "1024")
        with clustered(*LOCAL, *server, *computing, *options) as cluster:
            yield cluster, names


def run(command: str) -> RayReport:
    with started() as (cluster, names), Progress(transient=True) as bar:
        rows = []
        for fault in bar.track(FAULTS):
            rows.append(asyncio.run(row_of(fault, cluster, names)))
    return RayReport(machine("cpu", "float32"), command, rows)


def print_report(report: RayReport) -> None:
    markdown.print_figures(report.figures)
    print(markdown.table(_table(report)))


def write(folder: Path, report: RayReport) -> None:
    """ray.json and ray.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ray.json", asdict(report) | {"figures": report.figures})
    summary = "Replicas on a local Ray, killed under load one way after the other."
    sections = [Section("Faults", "", [_table(report)]), Section("How it is measured", RULES)]
    page = Report("Replicas on Ray", summary, report.machine, report.command, report.figures, sections)
    (folder / "ray.md").write_text(markdown.document(page, {}), encoding="utf-8")


def _table(report: RayReport) -> Table:
    rows = [
        (
            row.name,
            f"{row.num_answered:,}",
            f"{row.num_failed:,}",
            f"{row.slowest_s:.2f} s",
            f"{row.noticed_s:.2f} s",
            f"{row.unlisted_s:.2f} s" if row.back_s else "stays",
            f"{row.back_s:.1f} s" if row.back_s else "stays",
            f"{row.home:.1%}",
        )
        for row in report.rows
    ]
    header = ("fault", "answered", "failed", "slowest call", "noticed until", "unlisted after", "back after", "home")
    return Table(header, rows)
