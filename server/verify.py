"""Run recorded cases through the serving engine: scheduler, device residency, slots and runner, without the wire.

A directory of cases is what `docs/verify.md` describes. `check` answers every case; with `mixed` the rows of all cases
of one base are shuffled into batches of random sizes, with room for so few adapters that they are evicted throughout.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapters_cache.residency import Residency
from server.case_rows import Row, read_rows
from server.cases import Case, read_arrays, read_cases
from server.compare import compare_row, worst
from server.config import ModelConfig, SchedulerConfig
from server.core import Adapter, Encoding, Pooling, Sample, SampleOutput, target_of
from server.errors import AdapterdError, InvalidInput, UnsupportedConfig
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.scheduler.scheduler import Scheduler

MAX_RESIDENT_MIXED = 4  # adapters that fit while mixing: few, so that eviction never stops
MAX_BURST = 33  # rows that arrive together while mixing


@dataclass(slots=True)
class Outcome:
    """What became of one case. `error` is the worst excess over its tolerance; above 1 the case failed."""

    case: Case
    error: float = 0.0
    reason: str = ""
    is_unsupported: bool = False

    @property
    def is_failed(self) -> bool:
        return not self.is_unsupported and (bool(self.reason) or not self.error <= 1.0)


@dataclass(slots=True)
class _Work:
    """A row of a case and its answers, one per choice."""

    case: int
    row: Row
    outputs: list[SampleOutput | AdapterdError] = field(default_factory=list)


def check(
    root: Path,
    model: ModelConfig,
    *,
    tag: str = "",
    mixed: bool = False,
    seed: int = 0,
    tolerance: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    metrics: Metrics | None = None,
) -> list[Outcome]:
    """Answer every case under `root` that carries `tag`, and compare.

    tolerance  multiplies every case's own
    progress   called with (cases done, cases in all) as the work goes on
    metrics    of the engine that answers
    raises     InvalidInput where `root` holds no manifest or no case has the tag
    """
    if not 0 < tolerance < math.inf:
        raise InvalidInput(f"tolerance {tolerance:g} must be a number above 0; 1 takes every case's own")
    groups = read_cases(root, tag)
    num_cases = sum(len(group.cases) for group in groups)
    outcomes: list[Outcome] = []
    for group in groups:
        own = [Outcome(case) for case in group.cases]
        try:
            base = load_base(replace(model, base=group.base))
        except UnsupportedConfig as error:
            for outcome in own:
                outcome.reason, outcome.is_unsupported = error.message, True
        else:
            _check_group(root, base, own, mixed, seed, metrics or Metrics())
            for outcome in own:
                outcome.error /= tolerance
        outcomes += own
        progress(len(outcomes), num_cases)
    return outcomes


def _check_group(root: Path, base: Base, outcomes: list[Outcome], mixed: bool, seed: int, metrics: Metrics) -> None:
    """The cases of one base."""
    works: list[_Work] = []
    for index, outcome in enumerate(outcomes):
        try:
            works += [_Work(index, row) for row in read_rows(root, base, outcome.case)]
        except UnsupportedConfig as error:
            outcome.reason, outcome.is_unsupported = error.message, True
        except AdapterdError as error:
            outcome.reason = error.message
    if mixed:
        random.Random(seed).shuffle(works)
    bursts = _random_bursts(works, random.Random(seed)) if mixed else _bursts_by_case(works)
    asyncio.run(_answer(base, bursts, mixed, metrics))
    for index, outcome in enumerate(outcomes):
        if not outcome.reason:
            _compare(root, outcome, [work for work in works if work.case == index])


def _compare(root: Path, outcome: Outcome, works: Sequence[_Work]) -> None:
    """Everything that is recorded of a case. What cannot be compared is a reason to fail it, and only it."""
    case = outcome.case
    try:
        recorded = read_arrays(root, case["outputs"])
        outcome.error = worst(compare_row(work.row, recorded, _outputs(work), case["tolerance"]) for work in works)
    except AdapterdError as error:
        outcome.reason = error.message


def _outputs(work: _Work) -> list[SampleOutput]:
    """Raises what the engine answered a row with, if that was an error."""
    for output in work.outputs:
        if isinstance(output, AdapterdError):
            raise output
    return [output for output in work.outputs if isinstance(output, SampleOutput)]


def _bursts_by_case(works: list[_Work]) -> list[list[_Work]]:
    bursts: dict[int, list[_Work]] = {}
    for work in works:
        bursts.setdefault(work.case, []).append(work)
    return list(bursts.values())


def _random_bursts(works: list[_Work], rng: random.Random) -> list[list[_Work]]:
    bursts, start = [], 0
    while start < len(works):
        size = rng.randint(1, MAX_BURST)
        bursts.append(works[start : start + size])
        start += size
    return bursts


async def _answer(base: Base, bursts: list[list[_Work]], mixed: bool, metrics: Metrics) -> None:
    """Give every row its outputs; rows of one burst arrive together and share batches."""
    bank = SlotBank(base.device, base.dtype)
    residency = Residency(bank, _budget(bank, bursts, mixed), metrics)
    runner = Runner(base, bank, metrics)
    scheduler = Scheduler(SchedulerConfig(), residency.acquire, runner.run, metrics)
    residency.on_room = scheduler.notify
    runner.start()
    await scheduler.start()
    try:
        for burst in bursts:
            await asyncio.gather(*(_answer_row(scheduler, work) for work in burst))
        residency.check_integrity()
    finally:
        await scheduler.stop()
        runner.stop()


def _budget(bank: SlotBank, bursts: list[list[_Work]], mixed: bool) -> int:
    """Bytes for every target at once; while mixing, for a few of the largest, or half of them if that is fewer."""
    targets = {work.row.target.digest: work.row.target for burst in bursts for work in burst}
    sizes = sorted(sum(bank.slot_bytes(part) for part in target.parts) for target in targets.values())
    num_resident = max(1, min(MAX_RESIDENT_MIXED, sum(size > 0 for size in sizes) // 2))
    return max(1, sizes[-1] * num_resident if mixed and sizes else sum(sizes))


async def _answer_row(scheduler: Scheduler, work: _Work) -> None:
    samples = [
        Sample(
            encoding=encoding,
            target=work.row.target,
            pooling=Pooling.MEAN,
            reply=asyncio.get_running_loop().create_future(),
            deadline=None,
            return_hidden=True,
        )
        for encoding in work.row.encodings
    ]
    try:
        work.outputs = list(await asyncio.gather(*(scheduler.submit(sample) for sample in samples)))
    except AdapterdError as error:
        work.outputs = [error]


def answer_alone(base: Base, encodings: Sequence[Encoding], adapter: Adapter | None) -> list[SampleOutput]:
    """The engine's answer to each input in a batch of its own. Raises what the engine answers with instead."""
    target = target_of(adapter)
    works = [_Work(0, Row(i, len(encodings), target, (encoding,), (), None)) for i, encoding in enumerate(encodings)]
    asyncio.run(_answer(base, [[work] for work in works], mixed=False, metrics=Metrics()))
    return [_outputs(work)[0] for work in works]
