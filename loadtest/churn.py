"""A soak of the cache: callers ask while adapters are loaded, unloaded, replaced and pinned, and every tier fails.

Every row is compared with what the digest that it carries gives alone. Some adapters give NaN, and nothing else may
come of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from adapters_cache import origin
from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint, write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from loadtest.bench import batch_of, machine, random_checkpoint
from loadtest.children import memory_mib
from loadtest.figures import Figure, at_most
from loadtest.fleet.material import METHODS, save_small_base
from loadtest.fleet.stack import LENGTH, Stack, stack
from loadtest.workload import encoding
from server.config import CacheConfig, ModelConfig
from server.core import Adapter, Encoding, Parameters, SampleOutput, target_of
from server.engine import Work
from server.errors import AdapterdError, AdapterNotFound
from server.folders import put_in_place
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.results import Question
from server.threads import run_alone

NUM_VERSIONS, NUM_TEXTS, NUM_CALLERS = 2, 4, 16
TOLERANCE = 1e-4
FAILING_SHARE = 0.01  # of the requests
TIMEOUT_S = 2.0  # of a load
SETTLED_S = 20.0  # until back-off and looks at the folders are over
ENDLESS_S = float("inf")
SAMPLE_S = 1.0
WARM_UP = 0.25  # of the time


@dataclass(frozen=True, slots=True)
class Plan:
    """num: adapters; the tiers have room for a part of them."""

    num: int = 200
    seconds: float = 1200.0
    host_share: float = 0.4
    device_share: float = 0.2
    disk_share: float = 0.6


@dataclass(slots=True)
class Seen:
    """What happened. `rows` are texts answered; `unexpected` are errors of names that nothing was done to."""

    answers: int = 0
    rows: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    wrong_rows: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    memory_mib: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChurnReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    seen: Seen
    left_bytes: int

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            at_most(f"rows that a wrong digest answered, of {self.seen.rows:,}", self.seen.wrong, 0),
            at_most("errors of adapters that nothing was done to", sum(self.seen.unexpected.values()), 0),
            at_most("memory, largest tenth over smallest after the warm-up, minus 1", self.drift, 0.02),
            at_most("bytes held after everything was unloaded", self.left_bytes, 0),
        )

    @property
    def drift(self) -> float:
        """Of medians over a tenth of the time each."""
        start = self.plan.seconds * WARM_UP
        samples = [(at, mib) for at, mib in self.seen.memory_mib if at >= start]
        width = max(SAMPLE_S, (self.plan.seconds - start) / 10)
        parts = [[mib for at, mib in samples if i <= (at - start) / width < i + 1] for i in range(10)]
        medians = [float(np.median(part)) for part in parts if part]
        return max(medians) / min(medians) - 1 if medians else 0.0


def run(plan: Plan, command: str) -> ChurnReport:
    return asyncio.run(_run(plan, command))


async def _run(plan: Plan, command: str) -> ChurnReport:
    with tempfile.TemporaryDirectory() as name:
        world = await run_alone(_made, plan, Path(name))
        return await world.run(command)


def _made(plan: Plan, folder: Path) -> _World:
    save_small_base(folder / "base")
    base = load_base(ModelConfig(base=str(folder / "base"), dtype="float32"))
    world = _World(plan, base, folder)
    with Progress(transient=True) as bar:
        task = bar.add_task("making adapters", total=plan.num)
        world.make(lambda: bar.advance(task))
    return world


class _World:
    def __init__(self, plan: Plan, base: Base, folder: Path) -> None:
        self._plan, self._base, self._folder = plan, base, folder
        rng = random.Random(0)
        self._texts: list[Encoding] = [encoding(LENGTH, base.info.vocab_size, rng) for _ in range(NUM_TEXTS)]
        self._names = [f"a{i:03}" for i in range(plan.num)]
        self._failing = [f"nan{i:03}" for i in range(max(1, plan.num // 50))]  # adapters that load, and overflow
        self._wanted: dict[str, list[NDArray[np.float32]]] = {}  # by digest, for each text
        self._digests: dict[str, set[str]] = {}  # by name
        self._mean_bytes = 0
        self._broken: dict[str, float] = {}  # names that something is done to, and until when errors may come
        self._hanging: set[str] = set()
        self._seen = Seen()

    def make(self, advance: Callable[[], None]) -> None:
        """Two contents of every adapter, and what each answers alone."""
        bank = SlotBank(self._base.device, self._base.dtype)
        runner = Runner(self._base, bank, Metrics())
        sizes = []
        for number, name in enumerate(self._names):
            for version in range(NUM_VERSIONS):
                seed = number * NUM_VERSIONS + version
                checkpoint = random_checkpoint(self._base, seed, METHODS[seed % len(METHODS)])
                path = self._version(name, version)
                write_checkpoint(path, checkpoint, self._base.info)
                adapter = build_adapter(checkpoint, self._base.info, self._base.dtype, self._base)
                sizes.append(adapter.size_bytes)
                self._digests.setdefault(name, set()).add(adapter.digest)
                self._wanted[adapter.digest] = [self._alone(runner, bank, adapter, text) for text in self._texts]
            shutil.copytree(self._version(name, 0), self._folder / "adapters" / name)
            advance()
        for number, name in enumerate(self._failing):
            checkpoint = _overflowing(random_checkpoint(self._base, -1 - number), name)
            write_checkpoint(self._folder / "adapters" / name, checkpoint, self._base.info)
        self._mean_bytes = int(np.mean(sizes))

    def _version(self, name: str, version: int) -> Path:
        return self._folder / "versions" / str(version) / name

    def _alone(self, runner: Runner, bank: SlotBank, adapter: Adapter, text: Encoding) -> NDArray[np.float32]:
        bank.write(1, adapter)
        [outcome] = runner.execute(batch_of([(text, target_of(adapter))], {adapter.digest: 1}))
        if isinstance(outcome, AdapterdError):
            raise outcome
        return outcome.branches[0].values

    async def run(self, command: str) -> ChurnReport:
        plan = self._plan
        total = plan.num * self._mean_bytes
        config = CacheConfig(
            adapters=(self._folder / "adapters",),
            disk_path=str(self._folder / "disk"),
            host_bytes=int(total * plan.host_share),
            device_bytes=int(total * plan.device_share),
            disk_bytes=int(total * plan.disk_share),
            load_timeout_s=TIMEOUT_S,
            watch_s=0.5,
            idle_ttl_s=20.0,
        )
        origin.read_checkpoint = self._read  # type: ignore[attr-defined]
        async with stack(self._base, config) as server:
            tasks = [asyncio.create_task(self._ask(server, i)) for i in range(NUM_CALLERS)]
            tasks += [asyncio.create_task(job) for job in (self._move(server), self._break(server), self._watch())]
            done, _ = await asyncio.wait(tasks, timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
            left = await self._empty(server)
        return ChurnReport(machine("cpu", "float32"), command, plan, self._seen, left)

    async def _ask(self, server: Stack, seed: int) -> None:
        rng = random.Random(seed)
        while True:
            name = self._names[min(int(rng.paretovariate(0.6)) - 1, self._plan.num - 1)]
            if rng.random() < FAILING_SHARE:
                name = rng.choice(self._failing)
            numbers = rng.sample(range(NUM_TEXTS), rng.randint(1, NUM_TEXTS))
            questions = tuple(Question(text.source, (text,)) for text in map(self._texts.__getitem__, numbers))
            work = Work(name, questions, Parameters(), sticky_key=str(rng.randrange(50)))
            try:
                computed = await server.engine.compute(work)
            except AdapterdError as error:
                self._seen.errors[error.reason] += 1
                if self._broken.get(name, 0.0) < time.monotonic() and error.reason not in self._expected(name):
                    self._seen.unexpected[f"{error.reason} {name}: {error.message}"] += 1
                await asyncio.sleep(0.01)
                continue
            self._seen.answers += 1
            for number, output in zip(numbers, computed.outputs, strict=True):
                self._seen.rows += 1
                if not self._is_right(name, computed.answerer.digest, number, output):
                    self._seen.wrong += 1
                    self._seen.wrong_rows.append(self._told(name, computed.answerer.digest, number, output))
            await asyncio.sleep(0)

    def _told(self, name: str, digest: str, number: int, output: SampleOutput) -> str:
        """Of a wrong row, what leads to its cause."""
        owner = next((other for other, digests in self._digests.items() if digest in digests), "nobody's")
        off = "no reference"
        if digest in self._wanted:
            off = f"{np.abs(output.branches[0].values - self._wanted[digest][number]).max():.3g} off"
        batch = output.batch
        return (
            f"{name}: digest {digest[:12]} of {owner}, text {number}, {off}, {output.branches[0].values.tolist()},"
            f" batch {batch.id} of {batch.num_samples} samples and {batch.num_adapters} adapters"
        )

    def _expected(self, name: str) -> tuple[str, ...]:
        """Reasons of errors that an adapter gives by itself."""
        return ("NON_FINITE", "QUARANTINED") if name in self._failing else ()

    def _is_right(self, name: str, digest: str, number: int, output: SampleOutput) -> bool:
        """Nothing is, of an adapter that gives NaN."""
        if digest not in self._digests.get(name, ()):
            return False
        wanted = self._wanted[digest][number]
        return np.allclose(output.branches[0].values, wanted, atol=TOLERANCE, rtol=TOLERANCE)

    async def _move(self, server: Stack) -> None:
        """One thing after the other that an administrator may do."""
        rng = random.Random(-1)
        pinned: list[str] = []
        while True:
            name = rng.choice(self._names)
            what = rng.choice(("load", "unload", "replace", "canary", "traffic", "pin", "prefetch"))
            try:
                if what == "load":
                    await server.engine.load(name)
                elif what == "unload":
                    await server.engine.unload(name)
                elif what == "replace":
                    await self._replace(name, rng)
                    await server.engine.load(name)
                elif what == "canary":
                    await self._replace(name, rng)
                    await server.engine.load(name, percent=rng.randrange(100))
                elif what == "traffic":
                    versions = (await server.engine.get(name)).versions
                    if versions:
                        await server.engine.set_traffic(name, {rng.choice(versions).digest: rng.randrange(101)})
                elif what == "pin":
                    pinned.append(name)
                    await server.engine.pin(name, True)
                    if len(pinned) > self._plan.num // 20:
                        await server.engine.pin(pinned.pop(0), False)
                else:
                    await server.engine.prefetch(rng.sample(self._names, 5))
                self._seen.done[what] += 1
                if what in ("load", "replace", "unload"):
                    self._broken[name] = time.monotonic() + SETTLED_S  # it stands for what is there now
            except AdapterdError as error:
                self._seen.done[f"{what}: {error.reason}"] += 1
                if what in ("replace", "canary"):
                    self._may_fail(name, for_s=ENDLESS_S)  # its folder holds what it does not stand for, until Load
            await asyncio.sleep(0.02)

    async def _replace(self, name: str, rng: random.Random) -> None:
        """As Publish does."""
        self._may_fail(name)  # a name whose digest left every tier is refused until Load moves it
        aside = self._folder / f"{name}.new"
        await asyncio.to_thread(shutil.copytree, self._version(name, rng.randrange(NUM_VERSIONS)), aside)
        await asyncio.to_thread(put_in_place, aside, self._folder / "adapters" / name)
        await asyncio.to_thread(shutil.rmtree, aside, True)

    async def _break(self, server: Stack) -> None:
        """One tier after the other fails for a while."""
        rng = random.Random(-2)
        while True:
            name = rng.choice(self._names)
            what = rng.choice(("flipped bit on disk", "file gone from disk", "truncated origin", "hanging origin"))
            self._seen.done[what] += 1
            if what in ("flipped bit on disk", "file gone from disk"):
                await asyncio.to_thread(self._damage_disk, what, rng)
            else:
                await self._damage_origin(name, what)
            await asyncio.sleep(0.2)

    def _damage_disk(self, what: str, rng: random.Random) -> None:
        """Costs nobody an answer: what does not hold is read from its origin again."""
        with suppress(OSError, IndexError):
            path = rng.choice(list((self._folder / "disk" / "converted").glob("*.safetensors")))
            digest = path.name.partition(".")[0]
            for name in [name for name, digests in self._digests.items() if digest in digests]:
                self._may_fail(name, for_s=ENDLESS_S)  # what its origin has no more is gone with its file, until Load
            if what == "file gone from disk":
                path.unlink()
            else:
                with path.open("r+b") as file:
                    file.seek(-3, os.SEEK_END)
                    byte = file.read(1)
                    file.seek(-3, os.SEEK_END)
                    file.write(bytes([byte[0] ^ 4]))

    async def _damage_origin(self, name: str, what: str) -> None:
        self._may_fail(name)
        place = self._folder / "adapters" / name
        aside = self._folder / f"{name}.whole"
        await asyncio.to_thread(shutil.copytree, place, aside)
        weights = place / "adapter.safetensors"
        if what == "truncated origin":
            with suppress(OSError):
                os.truncate(weights, 100)
        else:
            self._hanging.add(name)
        await asyncio.sleep(0.7)
        self._hanging.discard(name)
        await asyncio.to_thread(put_in_place, aside, place)
        await asyncio.to_thread(shutil.rmtree, aside, True)
        self._may_fail(name)

    def _read(self, path: Path, **options: Any) -> Checkpoint:
        """As the origin reads, for as long as it does not hang."""
        if options["name"] in self._hanging:
            time.sleep(2 * TIMEOUT_S)
        return read_checkpoint(path, **options)

    def _may_fail(self, name: str, for_s: float = SETTLED_S) -> None:
        self._broken[name] = max(self._broken.get(name, 0.0), time.monotonic() + for_s)

    async def _watch(self) -> None:
        started = time.monotonic()
        with Progress(transient=True) as bar:
            task = bar.add_task("churn", total=self._plan.seconds)
            while True:
                await asyncio.sleep(SAMPLE_S)
                at = time.monotonic() - started
                self._seen.memory_mib.append((at, memory_mib()))
                bar.update(task, completed=at, description=f"{self._seen.rows:,} rows, {self._seen.wrong} wrong")

    async def _empty(self, server: Stack) -> int:
        """Unload everything, check the books; bytes that are left in any tier."""
        for name in (*self._names, *self._failing):
            with suppress(AdapterNotFound):
                await server.engine.unload(name)
        while server.adapters.is_loading:  # a read that was begun for a caller who left
            await asyncio.sleep(0.05)
        server.adapters.check_integrity()
        return server.adapters.used_bytes


def _overflowing(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The same with weights that are finite and whose product is not."""
    tensors = {key: torch.full_like(tensor, 3e38) for key, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, name=name, tensors=tensors)
