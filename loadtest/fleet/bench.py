"""The order of it all: make, convert, start, ask in every way, swap."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from rich.progress import Progress

from adapters_cache.host import HostLease
from loadtest.bench import machine
from loadtest.figures import Figure, at_least, at_most
from loadtest.fleet.hotswap import KEPT, HotSwap
from loadtest.fleet.material import Names, make_fleet, save_small_base
from loadtest.fleet.policies import PolicyRow, compare
from loadtest.fleet.popularity import POPULARITY, uniform
from loadtest.fleet.stack import Answered, Stack, config_of, stack
from loadtest.peers.environments import python_of
from loadtest.peers.process import PeerFailed
from server.config import ModelConfig
from server.core import Tier
from server.model.base import Base, load_base
from server.threads import run_alone

NUM_CALLERS = 32
NUM_CONVERTING = 4
ACTIVATION_S, LARGE_LOAD_S, START_S = 1e-3, 10e-3, 2.0
COLD_PER_S, HOT_NUM, HOT_SHARE = 50, 64, 0.3
RESIDENT = "all resident"
RATE_SHARE = 0.5  # of what the slowest popularity allows
ENDLESS_S = float("inf")
MANY = 1 << 17  # requests: more than any run gets to


@dataclass(frozen=True, slots=True)
class Plan:
    """num   adapters; num_host, num_device: how many of them, of mean size, the tiers have room for."""

    num: int = 10_000
    num_host: int = 2_000
    num_device: int = 256
    num_large: int = 60
    seconds: float = 15.0
    rounds: int = 6
    working_sets: tuple[int, ...] = (10, 25, 50, 256, 2_000, 10_000)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One popularity. per_s and tiers (share of requests by where their adapter was) are of a closed loop; p50 to p99
    of an open loop at a rate that is the same for all, in seconds."""

    name: str
    per_s: float
    tiers: dict[str, float]
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class Swap:
    """Requests a second over a working set of `num`: ours, one active adapter on our modules, and the same in
    AdapterHub's library, which is None where it could not run."""

    num: int
    ours: float
    swapped: float
    library: float | None


@dataclass(frozen=True, slots=True)
class Times:
    """p50 and p95 of one kind of load, in seconds."""

    name: str
    num: int
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Hot:
    """p99 of requests for a few adapters, in seconds, and the cold loads beside them that were done a second."""

    alone: float
    beside: float
    loads_per_s: float


@dataclass(frozen=True, slots=True)
class FleetReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    mean_bytes: int
    converted_per_s: float
    start_s: float
    rate: float
    scenarios: tuple[Scenario, ...]
    library_error: str
    loads: tuple[Times, ...]
    hot: Hot
    swaps: tuple[Swap, ...]
    policies: tuple[PolicyRow, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        by_name = {scenario.name: scenario for scenario in self.scenarios}
        hot, resident, spread = self.hot, by_name[RESIDENT], by_name["uniform"]
        times = {times.name: times for times in self.loads}
        past = [swap for swap in self.swaps if swap.num > KEPT]
        found = [
            at_most("p95 of uniform requests / of those where all are resident", spread.p95 / resident.p95, 1.5),
            at_most("p95 of placing an adapter on the device, ms", times["host to device"].p95 * 1e3, 1.0),
            at_most("p95 of a 2 MB adapter's load from a warm disk, ms", times["disk to host, 2 MB"].p95 * 1e3, 10.0),
            at_most(f"p99 of hot requests beside {COLD_PER_S} cold loads/s / without", hot.beside / hot.alone, 1.05),
            at_most(f"start over {self.plan.num:,} known adapters, s beyond the base's", self.start_s, START_S),
        ]
        for swap in past:
            name = f"ours / AdapterHub's library, {KEPT} kept, {swap.num:,} in use"
            found.append(at_least(name, swap.ours / swap.library if swap.library else 0.0, 40))  # 0: it did not run
        return tuple(found)


def run(plan: Plan, environments: Path, command: str) -> FleetReport:
    return asyncio.run(_run(plan, environments, command))


async def _run(plan: Plan, environments: Path, command: str) -> FleetReport:
    """Whatever computes does so in a thread that ends, as in a server: see server/threads.py."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, names = await run_alone(_made, plan, folder)
        try:
            python, error = python_of("adapterhub", environments, lambda _: None), ""
        except PeerFailed as failure:
            python, error = None, str(failure)
        return await _Fleet(plan, base, folder, names, python, error).run(command)


def _made(plan: Plan, folder: Path) -> tuple[Base, Names]:
    save_small_base(folder / "base")
    base = load_base(ModelConfig(base=str(folder / "base"), dtype="float32"))
    with Progress(transient=True) as bar:
        task = bar.add_task("making adapters", total=plan.num + plan.num_large)
        return base, make_fleet(folder / "adapters", base, plan.num, plan.num_large, lambda: bar.advance(task))


class _Fleet:
    def __init__(
        self, plan: Plan, base: Base, folder: Path, names: Names, python: Path | None, library_error: str
    ) -> None:
        self._plan, self._base, self._folder, self._names = plan, base, folder, names
        self._python, self._library_error = python, library_error
        self._mean_bytes = 0

    async def run(self, command: str) -> FleetReport:
        plan = self._plan
        with Progress(transient=True) as bar:
            task = bar.add_task("converting", total=2 * len(POPULARITY) + len(plan.working_sets) + 5)

            def step(what: str) -> None:
                bar.update(task, description=what, advance=1)

            converted_per_s = await self._convert()
            scenarios, rate, loads = await self._ask(step)
            step("large adapters")
            large = await self._large()
            step("hot beside cold")
            hot = await self._hot()
            swaps = [await self._swap(num, step) for num in plan.working_sets if num <= plan.num]
        async with self._stack() as known:
            start_s = known.start_s
        return FleetReport(
            machine=machine("cpu", "float32"),
            command=command,
            plan=plan,
            mean_bytes=self._mean_bytes,
            converted_per_s=converted_per_s,
            start_s=start_s,
            rate=rate,
            scenarios=tuple(scenarios),
            library_error=self._library_error,
            loads=(*loads, large),
            hot=hot,
            swaps=tuple(swaps),
            policies=tuple(compare()),
        )

    def _stack(self) -> AbstractAsyncContextManager[Stack]:
        """With room as planned, once it is known what an adapter takes."""
        plan, mean = self._plan, self._mean_bytes
        config = config_of(
            self._folder / "adapters",
            self._folder / "disk",
            host_bytes=plan.num_host * mean or 1 << 30,
            device_bytes=plan.num_device * mean or 1 << 30,
        )
        return stack(self._base, config)

    async def _convert(self) -> float:
        """Every adapter once from its checkpoint to disk; adapters a second."""
        names = iter([*self._names.mixed, *self._names.large])
        sizes: list[int] = []
        started = time.perf_counter()
        async with self._stack() as cold:

            async def convert() -> None:
                for name in names:
                    with await cold.adapters.ready(name) as lease:
                        assert lease.adapter is not None
                        if name in mixed:
                            sizes.append(lease.adapter.size_bytes)

            mixed = set(self._names.mixed)
            await asyncio.gather(*(convert() for _ in range(NUM_CONVERTING)))
            seconds = time.perf_counter() - started
        self._mean_bytes = int(statistics.mean(sizes))
        return (len(self._names.mixed) + len(self._names.large)) / seconds

    async def _ask(self, step: Callable[[str], None]) -> tuple[list[Scenario], float, list[Times]]:
        plan, names = self._plan, self._names.mixed
        few = plan.num_device // 2  # that fit, whatever their sizes are
        draws = {name: draw(plan.num, MANY, default_rng(1)) for name, draw in POPULARITY.items()}
        draws = {RESIDENT: uniform(few, MANY, default_rng(0)), **draws}
        found: dict[str, Scenario] = {}
        activations: list[float] = []
        async with self._stack() as server:
            await server.run(names[:few], np.arange(few), NUM_CALLERS, ENDLESS_S)
            for name, requests in draws.items():
                step(name)
                half = len(requests) // 2
                await server.run(names, requests[:half], NUM_CALLERS, plan.seconds / 2)  # warms up
                server.activations.clear()
                answered = await server.run(names, requests[half:], NUM_CALLERS, plan.seconds / 2)
                activations += server.activations
                found[name] = _scenario(name, answered)
            rate = RATE_SHARE * min(scenario.per_s for scenario in found.values())
            for name, requests in draws.items():
                step(f"{name}, {rate:.0f} a second")
                await _open_loop(server, names, requests, rate, plan.seconds / 4, seed=0)
                latencies = await _open_loop(server, names, requests[::-1], rate, plan.seconds, seed=1)
                p50, p95, p99 = (float(np.quantile(latencies, q)) for q in (0.5, 0.95, 0.99))
                found[name] = replace(found[name], p50=p50, p95=p95, p99=p99)
        return list(found.values()), rate, [_times("host to device", activations)]

    async def _large(self) -> Times:
        """One after the other from a warm disk, on an idle server."""
        seconds = []
        async with self._stack() as server:
            for name in self._names.large:
                started = time.perf_counter()
                (await server.adapters.ready(name)).release()
                seconds.append(time.perf_counter() - started)
        return _times("disk to host, 2 MB", seconds)

    async def _hot(self) -> Hot:
        """An open loop over a few adapters, without and with cold loads beside it; windows in turn."""
        plan, num = self._plan, min(HOT_NUM, self._plan.num_device // 2)
        hot = self._names.mixed[:num]
        found: tuple[list[float], list[float]] = ([], [])
        async with self._stack() as server:
            full = await server.run(hot, uniform(num, MANY, default_rng(3)), NUM_CALLERS, plan.seconds / 2)
            cold, num_loaded = iter(self._names.mixed[num:]), 0
            for number in range(2 * plan.rounds):
                is_beside = number % 2 == 1
                loading = asyncio.create_task(_load(server, cold, plan.seconds / 3)) if is_beside else None
                requests = uniform(num, MANY, default_rng(number))
                rate = full.per_s * HOT_SHARE
                found[is_beside].extend(await _open_loop(server, hot, requests, rate, plan.seconds / 3, number))
                num_loaded += await loading if loading is not None else 0
        without, beside = (float(np.quantile(latencies, 0.99)) for latencies in found)
        return Hot(without, beside, num_loaded / (plan.rounds * plan.seconds / 3))

    async def _swap(self, num: int, step: Callable[[str], None]) -> Swap:
        step(f"working set of {num}")
        names, requests = self._names.mixed[:num], uniform(num, MANY, default_rng(4))
        swap = HotSwap(self._base, self._folder / "adapters")
        swapped = await run_alone(swap.run, names, requests, self._plan.seconds / 2)
        library = None
        if self._python is not None:
            try:
                library = swap.run_library(names, requests, self._plan.seconds / 2, self._folder / "base", self._python)
            except PeerFailed as error:
                self._library_error = str(error)
        async with self._stack() as server:
            await server.run(names, requests, NUM_CALLERS, self._plan.seconds / 3)
            answered = await server.run(names, requests[::-1], NUM_CALLERS, self._plan.seconds / 2)
        return Swap(num, answered.per_s, swapped, library)


async def _load(server: Stack, names: Iterator[str], seconds: float) -> int:
    """Ask for COLD_PER_S cold adapters a second, whatever became of those before; how many came."""
    started, tasks = time.perf_counter(), list[asyncio.Task[HostLease]]()
    for name in names:
        if time.perf_counter() - started > seconds:
            break
        tasks.append(asyncio.create_task(server.adapters.ready(name)))
        tasks[-1].add_done_callback(lambda task: task.result().release())
        await asyncio.sleep(max(0.0, started + len(tasks) / COLD_PER_S - time.perf_counter()))
    return len(await asyncio.gather(*tasks))


async def _open_loop(
    server: Stack, names: Sequence[str], requests: NDArray[np.int64], per_s: float, seconds: float, seed: int
) -> list[float]:
    """Latencies from when each request was due, by Poisson arrivals."""
    rng, latencies, tasks = default_rng(seed), list[float](), list[asyncio.Task[None]]()
    started = due = time.perf_counter()

    async def ask(number: int, at: float) -> None:
        await server.ask(names[number], number)
        latencies.append(time.perf_counter() - at)

    for number in requests.tolist():
        due += float(rng.exponential(1 / per_s))
        if due > started + seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(number, due)))
    await asyncio.gather(*tasks)
    return latencies


def _scenario(name: str, answered: Answered) -> Scenario:
    tiers = {tier.value: answered.share(tier) for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK, Tier.ORIGIN)}
    return Scenario(name, answered.per_s, tiers)


def _times(name: str, seconds: Sequence[float]) -> Times:
    p50, p95 = (float(np.quantile(seconds, q)) for q in (0.5, 0.95)) if seconds else (0.0, 0.0)
    return Times(name, len(seconds), p50, p95)
