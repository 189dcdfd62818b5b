"""What a scrape costs after many adapters have passed through a server: series must not grow with adapters."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

from rich.progress import Progress

from adapterd import AsyncClient, Error, predict_request
from loadtest.bench import machine
from loadtest.children import Served, served
from loadtest.figures import Figure, at_most
from loadtest.fleet.material import make_fleet
from loadtest.tiny import make_base
from server.config import ModelConfig
from server.model.base import load_base

FORMATS = {  # as Prometheus asks for them, with exemplars and without
    "OpenMetrics": "application/openmetrics-text; version=1.0.0",
    "text": "text/plain; version=0.0.4",
}
SIZE_KB, TIME_MS = 256.0, 50.0
NUM_SCRAPES = 21
BATCH = 100
HOST_BYTES, DEVICE_BYTES = 4 << 20, 1 << 20  # some hundred adapters, so that most of them come and go
TOKENS = (2, 7, 8, 9, 3)


@dataclass(frozen=True, slots=True)
class Plan:
    num_adapters: int = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """Scrapes in one format. `num_asked` adapters had been asked for before."""

    num_asked: int
    format: str
    size_kb: float
    num_series: int
    median_ms: float
    slowest_ms: float


@dataclass(frozen=True, slots=True)
class ScrapeReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    rows: list[Row]

    @property
    def figures(self) -> tuple[Figure, ...]:
        last = [row for row in self.rows if row.num_asked == self.plan.num_adapters]
        after = f"after {self.plan.num_adapters:,} adapters"
        return (
            at_most(f"kB of a scrape {after}", max(row.size_kb for row in last), SIZE_KB),
            at_most(f"ms of a scrape {after}, median", max(row.median_ms for row in last), TIME_MS),
        )


def run(plan: Plan, command: str) -> ScrapeReport:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name, Progress(transient=True) as bar:
        folder = Path(name)
        base = load_base(ModelConfig(base=str(make_base(folder / "base")), device="cpu"))
        making = bar.add_task("adapters are made", total=plan.num_adapters)
        names = make_fleet(folder / "adapters", base, plan.num_adapters, 0, lambda: bar.advance(making)).mixed
        options = ["--base", str(folder / "base"), "--adapters", str(folder / "adapters"), "--device", "cpu"]
        options += ["--batch-tokens", "1024", "--set", "model.num_threads=1"]  # nothing of it is measured
        options += ["--set", f"cache.host_bytes={HOST_BYTES}", "--set", f"cache.device_bytes={DEVICE_BYTES}"]
        with served(*options) as server:
            rows = [_scraped(server, 0, form) for form in FORMATS]
            asking = bar.add_task("each is asked for", total=plan.num_adapters)
            asyncio.run(_ask(server, names, lambda num: bar.advance(asking, num)))
            rows += [_scraped(server, plan.num_adapters, form) for form in FORMATS]
    return ScrapeReport(machine("cpu", "float32"), command, plan, rows)


async def _ask(server: Served, names: Sequence[str], advance: Callable[[int], None]) -> None:
    """Each once. Raises RuntimeError if one is not answered: then it has not passed through."""
    async with AsyncClient(server.address) as client:
        for first in range(0, len(names), BATCH):
            some = names[first : first + BATCH]
            outcomes = await client.predict_batch([predict_request(name, tokens=[TOKENS]) for name in some])
            for name, outcome in zip(some, outcomes, strict=True):
                if isinstance(outcome, Error):
                    raise RuntimeError(f"adapter {name} gave no answer: {outcome}")
            advance(len(some))


def _scraped(server: Served, num_asked: int, form: str) -> Row:
    pages, seconds = zip(*(_scrape(server, form) for _ in range(NUM_SCRAPES)), strict=True)
    return Row(
        num_asked=num_asked,
        format=form,
        size_kb=max(map(len, pages)) / 1000,
        num_series=sum(not line.startswith(b"#") for line in pages[-1].splitlines()),
        median_ms=1000 * statistics.median(seconds),
        slowest_ms=1000 * max(seconds),
    )


def _scrape(server: Served, form: str) -> tuple[bytes, float]:
    request = Request(f"http://127.0.0.1:{server.http_port}/metrics", headers={"Accept": FORMATS[form]})
    started = time.perf_counter()
    with urlopen(request, timeout=10) as reply:
        return reply.read(), time.perf_counter() - started
