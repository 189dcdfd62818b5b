"""Run recorded cases through the engine: base, scheduler, device residency, slots and runner, without the wire.

A directory of cases is what `docs/verify.md` describes. `check` answers every case; with `mixed` the rows of all cases
of one base are shuffled into batches of random sizes, with room for so few adapters that they are evicted throughout.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters_cache.build import build_adapter
from adapters_cache.residency import Residency
from server.cases import Case, read_arrays, read_case, read_cases
from server.compare import compare_row, row_outputs, worst
from server.config import ModelConfig, SchedulerConfig
from server.core import Adapter, Encoding, Pooling, Sample, SampleOutput, TokenInput
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
    """What became of one case. `error` is the worst excess over its tolerance: at most 1, or the case failed."""

    case: Case
    error: float = 0.0
    reason: str = ""
    is_unsupported: bool = False

    @property
    def is_failed(self) -> bool:
        return not self.is_unsupported and (bool(self.reason) or not self.error <= 1.0)


@dataclass(slots=True)
class _Row:
    """kept [padded length]: which positions of the recorded batch are this row's tokens."""

    case: int
    row: int
    kept: NDArray[np.bool_]
    encoding: Encoding
    adapter: Adapter | None
    output: SampleOutput | AdapterdError | None = None


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
    raises     InvalidInput where `root` holds no manifest, no case has the tag, or an argument makes no sense
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
    rows: list[_Row] = []
    for index, outcome in enumerate(outcomes):
        try:
            rows += _rows(root, index, outcome.case, _adapter(root, base, outcome.case))
        except UnsupportedConfig as error:
            outcome.reason, outcome.is_unsupported = error.message, True
        except AdapterdError as error:
            outcome.reason = error.message
    if mixed:
        random.Random(seed).shuffle(rows)
    bursts = _random_bursts(rows, random.Random(seed)) if mixed else _bursts_by_case(rows)
    num_adapters = len({row.adapter.digest for row in rows if row.adapter})
    num_resident = max(1, min(MAX_RESIDENT_MIXED, num_adapters // 2) if mixed else num_adapters)
    asyncio.run(_answer(base, bursts, num_resident, metrics))
    for index, outcome in enumerate(outcomes):
        if not outcome.reason:
            _compare(root, outcome, [row for row in rows if row.case == index])


def _adapter(root: Path, base: Base, case: Case) -> Adapter | None:
    checkpoint = read_case(root, case)
    return build_adapter(checkpoint, base.info, base.dtype) if checkpoint else None


def _rows(root: Path, index: int, case: Case, adapter: Adapter | None) -> Iterator[_Row]:
    inputs = read_arrays(root, case["inputs"], "input_ids", "attention_mask")
    if inputs["input_ids"].ndim != 2:
        raise UnsupportedConfig("multiple choice is not supported")
    for number, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        kept = mask.astype(bool)
        types = inputs["token_type_ids"][number] if "token_type_ids" in inputs else np.zeros_like(ids)
        row_ids, row_types = tuple(ids[kept].tolist()), tuple(types[kept].tolist())
        yield _Row(index, number, kept, Encoding(row_ids, row_types, TokenInput(row_ids, row_types)), adapter)


def _bursts_by_case(rows: list[_Row]) -> list[list[_Row]]:
    bursts: dict[int, list[_Row]] = {}
    for row in rows:
        bursts.setdefault(row.case, []).append(row)
    return list(bursts.values())


def _random_bursts(rows: list[_Row], rng: random.Random) -> list[list[_Row]]:
    bursts, start = [], 0
    while start < len(rows):
        size = rng.randint(1, MAX_BURST)
        bursts.append(rows[start : start + size])
        start += size
    return bursts


async def _answer(base: Base, bursts: list[list[_Row]], num_resident: int, metrics: Metrics) -> None:
    """Give every row its output; rows of one burst arrive together and share batches."""
    bank = SlotBank(base.device, base.dtype)
    adapters = {row.adapter.digest: row.adapter for burst in bursts for row in burst if row.adapter}
    largest = max((bank.slot_bytes(adapter) for adapter in adapters.values()), default=1)
    residency = Residency(bank, largest * num_resident, metrics)
    runner = Runner(base, bank, metrics)
    scheduler = Scheduler(SchedulerConfig(), residency.acquire, runner.run, metrics)
    residency.on_room = scheduler.notify
    runner.start()
    await scheduler.start()
    try:
        for burst in bursts:
            await asyncio.gather(*(_answer_row(scheduler, row) for row in burst))
        residency.check_integrity()
        scheduler.check_integrity()
    finally:
        await scheduler.stop()
        runner.stop()


async def _answer_row(scheduler: Scheduler, row: _Row) -> None:
    sample = Sample(
        encoding=row.encoding,
        adapter=row.adapter,
        pooling=Pooling.MEAN,
        reply=asyncio.get_running_loop().create_future(),
        deadline=None,
        return_hidden=True,
    )
    try:
        row.output = await scheduler.submit(sample)
    except AdapterdError as error:  # fails this row's case; the others are answered
        row.output = error


def _compare(root: Path, outcome: Outcome, rows: list[_Row]) -> None:
    """Set the worst excess over the tolerance, or the reason why there is none."""
    try:
        recorded = read_arrays(root, outcome.case["outputs"])
        outcome.error = worst(
            compare_row(
                recorded, row.row, row.kept, row_outputs(row.adapter, _answered(row)), outcome.case["tolerance"]
            )
            for row in rows
        )
    except AdapterdError as error:
        outcome.reason = error.message


def _answered(row: _Row) -> SampleOutput:
    """Raises what failed the row."""
    assert row.output is not None
    if isinstance(row.output, AdapterdError):
        raise row.output
    return row.output


def answer_alone(base: Base, encodings: Sequence[Encoding], adapter: Adapter | None) -> list[SampleOutput]:
    """The engine's answer to each input in a batch of its own. Raises what failed one."""
    rows = [
        _Row(0, number, np.ones(encoding.num_tokens, bool), encoding, adapter)
        for number, encoding in enumerate(encodings)
    ]
    asyncio.run(_answer(base, [[row] for row in rows], 1, Metrics()))
    return [_answered(row) for row in rows]
