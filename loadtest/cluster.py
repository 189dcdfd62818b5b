"""Several replicas on one machine: what a second and a fourth one add, what routing by adapter saves, a hot adapter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from rich.progress import Progress

from adapterd import routing
from adapters_cache.following import FOLLOW_S
from loadtest.bench import machine
from loadtest.figures import Figure, at_least, at_most
from loadtest.fleet.popularity import zipf
from loadtest.replicas import BATCH_SAMPLES, Answered, Replicas, closed_loop, make_version, replicas, shares

COUNTS = (1, 2, 4)
BATCH_S = (0.1, 0.05, 0.025, 0.0125)  # of the simulated device, from slow to faster than this machine can feed four of
CALLERS = 4 * BATCH_SAMPLES
FILLING = 8 * BATCH_SAMPLES  # callers for each replica that leave no device of several idle by chance: half as many do
LINEAR, EXPONENT = 0.95, 1.0
BELOW = 0.75  # of the machine's limit: nearer to it callers and servers wait for cores
HOT_CALLERS, OTHER_CALLERS = 5 * BATCH_SAMPLES, BATCH_SAMPLES
PUBLISH_S = 5.0
BOUND_S = FOLLOW_S + 0.5  # a look at the orders, and the load of an adapter of this size beside full devices
HITS, MISSES = (f'adapterd_{what}_total{{tier="device"}}' for what in ("hits", "misses"))


@dataclass(frozen=True, slots=True)
class Plan:
    """seconds   of each measurement, after as long a warm-up"""

    seconds: float = 10.0
    num_adapters: int = 400
    counts: tuple[int, ...] = COUNTS
    batch_s: tuple[float, ...] = BATCH_S
    num_published: int = 5


@dataclass(frozen=True, slots=True)
class Row:
    """Replicas whose device takes `batch_s` for each batch.

    device_per_s   that the devices could answer
    linear         of the throughput of one replica, times their number
    busiest        share of the answers that the busiest replica gave
    """

    batch_s: float
    num_replicas: int
    answered_per_s: float
    device_per_s: float
    linear: float
    busiest: float
    num_failed: int


@dataclass(frozen=True, slots=True)
class HitRow:
    """Of look-ups on the devices of the largest cluster."""

    routing: str
    hit_rate: float


@dataclass(frozen=True, slots=True)
class HotRow:
    """One adapter that more ask for than a replica can answer, and others that few ask for."""

    spill: str
    hot_per_s: float
    hot_p95_s: float
    others_per_s: float
    others_p95_s: float
    replicas: int


@dataclass(frozen=True, slots=True)
class PublishRow:
    """A new version of an adapter that all replicas are answering for.

    took_s       until Publish had answered
    last_old_s   after that, until the last reply of the version before
    others       replies of neither version
    """

    took_s: float
    last_old_s: float
    num_replies: int
    others: int
    num_failed: int


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """limit_per_s   the most that this machine answered, of all rows and in front of devices that take no time"""

    machine: dict[str, str]
    command: str
    plan: Plan
    limit_per_s: float
    rows: list[Row]
    hits: list[HitRow]
    hot: list[HotRow]
    published: list[PublishRow]

    @property
    def figures(self) -> tuple[Figure, ...]:
        most = BELOW * self.limit_per_s
        below = [row.linear for row in self.rows if row.num_replicas > 1 and row.device_per_s <= most]
        (without, spilling), published, at_random = self.hot, self.published, self.hits[1].hit_rate
        return (
            at_least("least throughput / linear, up to 3/4 of the machine's limit", min(below, default=0.0), LINEAR),
            at_most("requests that failed", sum(row.num_failed for row in self.rows), 0),
            at_least("hit rate by adapter / at random", self.hits[0].hit_rate / max(at_random, 1e-6), 1.0),
            at_least(
                "hot adapter's throughput, with spill-over / without", spilling.hot_per_s / without.hot_per_s, 1.5
            ),
            at_most("others' p95, with spill-over / without", spilling.others_p95_s / without.others_p95_s, 1.0),
            at_most("last reply of the version before a publish, s", max(r.last_old_s for r in published), BOUND_S),
            at_most("replies of neither version, and failures", sum(r.others + r.num_failed for r in published), 0),
        )


def run(plan: Plan, command: str) -> ClusterReport:
    with replicas(max(plan.counts), plan.num_adapters) as cluster, Progress() as bar:
        total = len(plan.counts) * len(plan.batch_s) + 1 + 2 + 2 + plan.num_published
        task = bar.add_task("replicas", total=total)
        return asyncio.run(_measure(cluster, plan, command, lambda: bar.advance(task)))


async def _measure(cluster: Replicas, plan: Plan, command: str, advance: Callable[[], None]) -> ClusterReport:
    limit = await _throughput(cluster, plan, 0.0, max(plan.counts))
    advance()
    rows: list[Row] = []
    for batch_s in plan.batch_s:
        single = 0.0
        for number in plan.counts:
            answered = await _throughput(cluster, plan, batch_s, number)
            rate = answered.rate(plan.seconds)
            single = single or rate
            rows.append(
                Row(
                    batch_s=batch_s,
                    num_replicas=number,
                    answered_per_s=rate,
                    device_per_s=number * BATCH_SAMPLES / batch_s,
                    linear=rate / (number * single),
                    busiest=max(shares(answered).values()),
                    num_failed=len(answered.failures),
                )
            )
            advance()
    hits, hot = [], []
    for is_routed in (True, False):
        hits.append(await _hits(cluster, plan, is_routed))
        advance()
    for spills in (False, True):
        hot.append(await _hot(cluster, plan, spills))
        advance()
    published = []
    for number in range(plan.num_published):
        published.append(await _publish(cluster, plan, number))
        advance()
    rate = max(limit.rate(plan.seconds), *(row.answered_per_s for row in rows))
    return ClusterReport(machine("cpu", "float32"), command, plan, rate, rows, hits, hot, published)


async def _throughput(cluster: Replicas, plan: Plan, batch_s: float, number: int) -> Answered:
    cluster.set_batch_s(batch_s)
    await cluster.use(number)
    draw = _uniform(cluster.names)
    async with cluster.client() as client:
        return await closed_loop(lambda name: client, draw, FILLING * number, plan.seconds, plan.seconds)


async def _hits(cluster: Replicas, plan: Plan, is_routed: bool) -> HitRow:
    """In both cases after a warm-up in which the devices fill."""
    number = max(plan.counts)
    cluster.set_batch_s(plan.batch_s[-1])
    await cluster.use(number)
    draw = _zipf(cluster.names)
    async with cluster.client() as client, cluster.at_random(number) as random_one:
        chosen = (lambda name: client) if is_routed else random_one
        await closed_loop(chosen, draw, CALLERS, plan.seconds, 0.0)
        before = await asyncio.to_thread(lambda: (cluster.counted(HITS), cluster.counted(MISSES)))
        await closed_loop(chosen, draw, CALLERS, plan.seconds, 0.0)
        after = await asyncio.to_thread(lambda: (cluster.counted(HITS), cluster.counted(MISSES)))
    hits, misses = after[0] - before[0], after[1] - before[1]
    return HitRow("by adapter" if is_routed else "at random", hits / (hits + misses))


async def _hot(cluster: Replicas, plan: Plan, spills: bool) -> HotRow:
    cluster.set_batch_s(plan.batch_s[0])
    await cluster.use(max(plan.counts))
    hot, others = cluster.names[0], cluster.names[1:]
    draw_other = _uniform(others)

    def draw(number: int) -> str:
        return hot if number < HOT_CALLERS else draw_other(number)

    spread, moved = (routing.MAX_SPREAD, routing.MAX_MOVED) if spills else (1.0, 0.0)
    with patch.multiple(routing, MAX_SPREAD=spread, MAX_MOVED=moved):
        async with cluster.client() as client:
            callers = HOT_CALLERS + OTHER_CALLERS
            answered = await closed_loop(lambda name: client, draw, callers, plan.seconds, plan.seconds)
    pairs = list(zip(answered.adapter, answered.replica, strict=True))
    mine, theirs = answered.of(hot), answered.of(hot, others=True)
    return HotRow(
        spill="on" if spills else "off",
        hot_per_s=len(mine) / plan.seconds,
        hot_p95_s=float(np.quantile(mine, 0.95)),
        others_per_s=len(theirs) / plan.seconds,
        others_p95_s=float(np.quantile(theirs, 0.95)),
        replicas=len({replica for name, replica in pairs if name == hot}),
    )


async def _publish(cluster: Replicas, plan: Plan, number: int) -> PublishRow:
    """Half of the callers ask for the adapter that is published, at any replica, and half for others."""
    replicas = max(plan.counts)
    cluster.set_batch_s(plan.batch_s[-1])
    await cluster.use(replicas)
    name, draw_other = cluster.names[number], _uniform(cluster.names[plan.num_published :])
    version = await asyncio.to_thread(make_version, cluster, name, 10_000 + number)
    async with cluster.client() as client, cluster.at_random(replicas) as random_one:
        old = (await client.load(name)).adapter.digest
        load = asyncio.create_task(
            closed_loop(
                random_one, lambda caller: name if caller % 2 else draw_other(caller), CALLERS, PUBLISH_S, PUBLISH_S / 4
            )
        )
        await asyncio.sleep(PUBLISH_S / 2)
        begun = time.monotonic()
        new = (await client.publish(version, name)).adapter.digest
        done = time.monotonic()
        answered = await load
    replies = [reply for reply in answered.replies() if reply[0] == name]
    return PublishRow(
        took_s=done - begun,
        last_old_s=max((at - done for _, digest, at in replies if digest == old), default=0.0),
        num_replies=len(replies),
        others=sum(digest not in (old, new) for _, digest, _ in replies),
        num_failed=len(answered.failures),
    )


def _uniform(names: Sequence[str]) -> Callable[[int], str]:
    rng = np.random.default_rng(1)
    return lambda number: names[int(rng.integers(len(names)))]


def _zipf(names: Sequence[str]) -> Callable[[int], str]:
    drawn = iter(zipf(len(names), 1_000_000, np.random.default_rng(2), EXPONENT))
    return lambda number: names[int(next(drawn))]
