"""A real server for a long time: callers who leave in the middle, clients that are killed, adapters that come and go.

Every answer of a text is compared with the first one that its digest gave.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from adapterd import AsyncClient, Error
from loadtest.bench import machine
from loadtest.children import Served, served
from loadtest.deployment import publish
from loadtest.figures import Figure, at_most
from loadtest.fleet.material import save_small_base
from server.config import ModelConfig
from server.model.base import load_base
from server.tenants import PREFIX, digest_of

NUM_ADAPTERS, NUM_CALLERS, NUM_TEXTS, NUM_RESIDENT = 64, 8, 16, 24
CANCEL_SHARE, CANCEL_WITHIN_S = 0.1, 0.02
CRASH_EVERY_S, CRASH_AFTER_S = 10.0, 0.5
TOLERANCE = 1e-4
WARM_UP = 0.25  # of the time
SAMPLE_S = 1.0
MIB = 1 << 20
TOKEN = "token-of-the-soak"
CRASHING = """
import asyncio, sys
from adapterd import AsyncClient
async def main():
    async with AsyncClient(sys.argv[1], token=sys.argv[2]) as client:
        while True:
            await asyncio.gather(*(client.predict(name, tokens=[[5, 6, 7]] * 8) for name in sys.argv[3:]))
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float = 1200.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the server's process. `kept_mib` of its memory is free, in the heap."""

    at_s: float
    memory_mib: float
    kept_mib: float
    num_descriptors: int
    num_threads: int


@dataclass(slots=True)
class Seen:
    """`errors` by code and reason, of callers to whom nothing was done."""

    answers: int = 0
    wrong: int = 0
    cancelled: int = 0
    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SoakReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    seen: Seen

    @property
    def steady(self) -> list[Sample]:
        return [sample for sample in self.seen.samples if sample.at_s >= self.plan.seconds * WARM_UP]

    @property
    def slope_mb_per_h(self) -> float:
        """Of a line through the memory that is in use after the warm-up (least squares)."""
        at, used = np.array([(sample.at_s, sample.memory_mib - sample.kept_mib) for sample in self.steady]).T
        return float(np.polyfit(at, used, 1)[0] * 3600 * 1.048576)

    def growth(self, what: str) -> int:
        """Of the last tenth over the first after the warm-up, medians."""
        values = [getattr(sample, what) for sample in self.steady]
        tenth = max(1, len(values) // 10)
        return round(float(np.median(values[-tenth:]) - np.median(values[:tenth])))

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            at_most(f"wrong answers, of {self.seen.answers:,}", self.seen.wrong, 0),
            at_most("errors of callers to whom nothing was done", sum(self.seen.errors.values()), 0),
            at_most("memory in use after the warm-up, MB/h", self.slope_mb_per_h, 1.0),
            at_most("descriptors more", self.growth("num_descriptors"), 0),
            at_most("threads more", self.growth("num_threads"), 0),
        )


def run(plan: Plan, command: str) -> SoakReport:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        save_small_base(folder / "base")
        base = load_base(ModelConfig(base=str(folder / "base"), dtype="float32"))
        paths = publish(base, folder / "adapters", NUM_ADAPTERS)
        size = sum(file.stat().st_size for file in paths[0].iterdir())
        declared = f'[soak]\ncredentials = ["{PREFIX}{digest_of(TOKEN)}"]\nadapters = ["*"]\ncan_load = true\n'
        declared += "can_observe = true\n"
        (folder / "tenants.toml").write_text(declared)
        options = ["--base", str(folder / "base"), "--adapters", str(folder / "adapters"), "--dtype", "float32"]
        options += ["--disk", str(folder / "disk"), "--tenants", str(folder / "tenants.toml"), "--batch-tokens", "1024"]
        options += ["--set", f"cache.host_bytes={NUM_RESIDENT * size}", "--set", f"cache.device_bytes={16 * size}"]
        options += ["--set", "scheduler.canary_share=0.01", "--set", f"api.audit_log={folder / 'audit'}"]
        names = tuple(path.name for path in paths)
        with served(*options) as server:
            seen = asyncio.run(_Soak(plan, server, names, folder / "tenants.toml").run())
    return SoakReport(machine("cpu", "float32"), command, plan, seen)


class _Soak:
    def __init__(self, plan: Plan, server: Served, names: tuple[str, ...], tenants: Path) -> None:
        self._plan, self._server, self._names, self._tenants = plan, server, names, tenants
        self._texts = [list(range(10 + i, 26 + i)) for i in range(NUM_TEXTS)]
        self._known: dict[tuple[str, int], list[float]] = {}  # by digest and text
        self._seen = Seen()

    async def run(self) -> Seen:
        async with AsyncClient(self._server.address, token=TOKEN, max_retries=0) as client:
            jobs = [self._call(client, seed) for seed in range(NUM_CALLERS)]
            jobs += [self._move(client), self._crash(), self._reload(), self._watch()]
            tasks = [asyncio.create_task(job) for job in jobs]
            done, _ = await asyncio.wait(tasks, timeout=self._plan.seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
        return self._seen

    async def _call(self, client: AsyncClient, seed: int) -> None:
        rng = random.Random(seed)
        while True:
            name = self._names[min(int(rng.paretovariate(0.7)) - 1, len(self._names) - 1)]
            numbers = rng.sample(range(NUM_TEXTS), rng.randint(1, 4))
            texts = [self._texts[number] for number in numbers]
            call = asyncio.create_task(client.predict(name, tokens=texts, return_logits=True, timeout=30))
            try:
                if rng.random() < CANCEL_SHARE:
                    await asyncio.sleep(rng.random() * CANCEL_WITHIN_S)
                    self._seen.cancelled += call.cancel()
                reply = await call
            except asyncio.CancelledError:
                if (own := asyncio.current_task()) is not None and own.cancelling():
                    raise
                continue
            except Error as error:
                self._seen.errors[f"{error.code.name} {error.reason}"] += 1
                continue
            self._seen.answers += 1
            for number, result in zip(numbers, reply.results, strict=True):
                values = list(result.logits.values)
                known = self._known.setdefault((reply.digest, number), values)
                self._seen.wrong += not np.allclose(values, known, atol=TOLERANCE, rtol=TOLERANCE)

    async def _move(self, client: AsyncClient) -> None:
        rng = random.Random(-1)
        while True:
            name, what = rng.choice(self._names), rng.choice(("load", "unload", "pin", "prefetch", "list"))
            if what == "load":
                await client.load(name)
            elif what == "unload":
                await client.unload(name)
            elif what == "pin":
                await client.pin(name)
                await client.pin(name, False)
            elif what == "prefetch":
                await client.prefetch(rng.sample(self._names, 4))
            else:
                assert len([adapter async for adapter in client.list()]) == len(self._names)
            self._seen.done[what] += 1
            await asyncio.sleep(0.2)

    async def _crash(self) -> None:
        """A client with calls and connections open is killed."""
        while True:
            command = [sys.executable, "-c", CRASHING, self._server.address, TOKEN, *self._names[:8]]
            process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
            await asyncio.sleep(1.0 + CRASH_AFTER_S)  # until it has started, and a while
            process.send_signal(signal.SIGKILL)
            await process.wait()
            self._seen.done["client killed"] += 1
            await asyncio.sleep(CRASH_EVERY_S)

    async def _reload(self) -> None:
        while True:
            await asyncio.sleep(15.0)
            os.utime(self._tenants)
            self._seen.done["tenants read again"] += 1

    async def _watch(self) -> None:
        started = time.monotonic()
        with Progress(transient=True) as bar:
            task = bar.add_task("soak", total=self._plan.seconds)
            while True:
                await asyncio.sleep(SAMPLE_S)
                at = time.monotonic() - started
                process = Path(f"/proc/{self._server.pid}")
                num_descriptors, num_threads = (len(os.listdir(process / name)) for name in ("fd", "task"))
                heap = await asyncio.to_thread(self._server.metrics, TOKEN)
                kept_mib = heap['adapterd_heap_bytes{state="free"}'] / MIB
                sample = Sample(at, self._server.memory_mib, kept_mib, num_descriptors, num_threads)
                self._seen.samples.append(sample)
                text = f"{self._seen.answers:,} answers, {sample.memory_mib:.0f} MiB"
                bar.update(task, completed=at, description=text)
