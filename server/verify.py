"""Run recorded cases through the serving engine: the real base, cache, scheduler, slots and runner, without the wire.

A directory of cases is what `docs/verify.md` describes. `check` answers every case; with `mixed` the rows of all cases
of one base are shuffled into batches of random sizes, with room for so few adapters that they are evicted throughout.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.residency import Residency
from server.config import ModelConfig, SchedulerConfig
from server.core import Adapter, Encoding, Pooling, Sample, SampleOutput, TokenInput
from server.errors import AdapterdError, InvalidInput, UnsupportedConfig
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.primitives import Task
from server.scheduler.scheduler import Scheduler

Arrays = Mapping[str, NDArray[Any]]
NUM_RESIDENT_MIXED = 4  # adapters that fit while mixing: few, so that eviction never stops
MAX_BURST = 33  # rows that arrive together while mixing
PER_TOKEN = ("last_hidden_state", "start_logits", "end_logits")


@dataclass(slots=True)
class Outcome:
    """What became of one case. `error` is the worst excess over its tolerance; above 1 the case failed."""

    case: Mapping[str, Any]
    error: float = 0.0
    reason: str = ""
    is_unsupported: bool = False

    @property
    def is_failed(self) -> bool:
        return not self.is_unsupported and (bool(self.reason) or not self.error <= 1.0)


@dataclass(slots=True)
class _Row:
    case: int
    row: int
    encoding: Encoding
    adapter: Adapter | None
    output: SampleOutput | None = None


@dataclass(slots=True)
class _Group:
    """The cases of one base."""

    base: str
    outcomes: list[Outcome] = field(default_factory=list)


def check(
    root: Path,
    model: ModelConfig,
    *,
    tag: str = "",
    mixed: bool = False,
    seed: int = 0,
    tolerance: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Answer every case under `root` that carries `tag`, and compare.

    tolerance  multiplies every case's own
    progress   called with (cases done, cases in all) as the work goes on
    raises     InvalidInput where `root` holds no manifest or no case has the tag
    """
    groups = _read_manifest(root, tag)
    num_cases = sum(len(group.outcomes) for group in groups)
    done = 0
    for group in groups:
        try:
            base = load_base(replace(model, base=group.base))
        except UnsupportedConfig as error:
            for outcome in group.outcomes:
                outcome.reason, outcome.is_unsupported = error.message, True
        else:
            _check_group(root, base, group, mixed, seed)
            for outcome in group.outcomes:
                outcome.error /= tolerance
        done += len(group.outcomes)
        progress(done, num_cases)
    return [outcome for group in groups for outcome in group.outcomes]


def _read_manifest(root: Path, tag: str) -> list[_Group]:
    try:
        manifest = json.loads((root / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{root} holds no readable manifest.json of recorded cases") from error
    groups: dict[str, _Group] = {}
    for case in manifest["cases"]:
        if not tag or tag in case["tags"]:
            group = groups.setdefault(case["base_dir"], _Group(_base_name(root, case["base_dir"])))
            group.outcomes.append(Outcome(case))
    if not groups:
        tags = sorted({tag for case in manifest["cases"] for tag in case["tags"]})
        raise InvalidInput(f"no case has the tag {tag!r}; tags here: {', '.join(tags)}")
    return list(groups.values())


def _base_name(root: Path, base_dir: str) -> str:
    """A folder beside the cases, else what `serve --base` takes."""
    return str(root / base_dir) if (root / base_dir).is_dir() else base_dir


def _check_group(root: Path, base: Base, group: _Group, mixed: bool, seed: int) -> None:
    rows: list[_Row] = []
    for index, outcome in enumerate(group.outcomes):
        try:
            adapter = _adapter(root, base, outcome.case)
            rows += _rows(root, index, outcome.case, adapter)
        except UnsupportedConfig as error:
            outcome.reason, outcome.is_unsupported = error.message, True
        except AdapterdError as error:
            outcome.reason = error.message
    if not rows:
        return
    if mixed:
        random.Random(seed).shuffle(rows)
        bursts = _random_bursts(rows, random.Random(seed))
    else:
        bursts = _bursts_by_case(rows)
    answered = asyncio.run(_answer(base, bursts, NUM_RESIDENT_MIXED if mixed else len(rows)))
    by_case: dict[int, list[_Row]] = {}
    for row in answered:
        by_case.setdefault(row.case, []).append(row)
    for index, own in by_case.items():
        outcome = group.outcomes[index]
        outcome.error = _compare(root, outcome.case, sorted(own, key=lambda row: row.row))


def _adapter(root: Path, base: Base, case: Mapping[str, Any]) -> Adapter | None:
    """The adapter and head that a case names. Raises UnsupportedConfig for what the engine does not run yet."""
    composition = case["composition"]
    for key in ("fusions", "setup_dir", "skip_layers"):
        if case.get(key):
            raise UnsupportedConfig(f"{key} is not supported")
    if isinstance(composition, dict):
        raise UnsupportedConfig(f"composition {composition['type']} is not supported")
    if not isinstance(case["head"], str | None):
        raise UnsupportedConfig("several heads are not supported")
    if composition is None and case["head"] is None:
        return None
    [source] = case["adapters"]
    head_path = next((root / head["dir"] for head in case["heads"] if head["name"] == case["head"]), None)
    checkpoint = read_checkpoint(
        root / source["dir"], name=source["name"], leave_out=source.get("leave_out", ()), head_path=head_path
    )
    return build_adapter(checkpoint, base.info, base.dtype, name=source["name"])


def _rows(root: Path, index: int, case: Mapping[str, Any], adapter: Adapter | None) -> Iterator[_Row]:
    inputs = load_file(root / case["inputs"])
    if inputs["input_ids"].ndim != 2:
        raise UnsupportedConfig("multiple choice is not supported")
    for number, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        kept = mask.astype(bool)
        types = inputs["token_type_ids"][number] if "token_type_ids" in inputs else np.zeros_like(ids)
        row_ids, row_types = tuple(ids[kept].tolist()), tuple(types[kept].tolist())
        yield _Row(index, number, Encoding(row_ids, row_types, TokenInput(row_ids, row_types)), adapter)


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


async def _answer(base: Base, bursts: list[list[_Row]], num_resident: int) -> list[_Row]:
    """Every row with its output; rows of one burst arrive together and share batches."""
    metrics = Metrics()
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
    finally:
        await scheduler.stop()
        runner.stop()
    return [row for burst in bursts for row in burst]


async def _answer_row(scheduler: Scheduler, row: _Row) -> None:
    sample = Sample(
        encoding=row.encoding,
        adapter=row.adapter,
        pooling=Pooling.MEAN,
        reply=asyncio.get_running_loop().create_future(),
        deadline=None,
        return_hidden=True,
    )
    row.output = await scheduler.submit(sample)


def _compare(root: Path, case: Mapping[str, Any], rows: list[_Row]) -> float:
    """Worst excess |got - recorded| / (atol + rtol |recorded|) over everything recorded."""
    recorded = load_file(root / case["outputs"])
    atol, rtol = case["tolerance"]["atol"], case["tolerance"]["rtol"]
    errors = [
        np.max(np.abs(got - want) / (atol + rtol * np.abs(want)), initial=0.0)
        for row in rows
        for got, want in _pairs(recorded, row)
    ]
    assert errors, f"case {case['id']} records nothing that is compared"
    return float("nan") if any(np.isnan(error) for error in errors) else float(max(errors))


def _pairs(recorded: Arrays, row: _Row) -> Iterable[tuple[NDArray[Any], NDArray[Any]]]:
    """(answer, recorded) of one row: recorded for the row alone if there is that, else its part of the batch."""
    assert row.output is not None and row.output.hidden is not None
    answers: dict[str, NDArray[Any]] = {"last_hidden_state": row.output.hidden}
    if row.output.pooler is not None:
        answers["pooler_output"] = row.output.pooler
    if row.adapter and row.adapter.spec.head:
        answers |= head_outputs(row.adapter, row.output.values)
    for name, answer in answers.items():
        if f"row{row.row}.{name}" in recorded:
            yield answer, recorded[f"row{row.row}.{name}"][0]
        elif name in recorded:
            want = recorded[name][row.row]
            yield answer, want[: len(answer)] if name in PER_TOKEN or answer.ndim == 2 else want


def head_outputs(adapter: Adapter, values: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """A head's answer under the names that recorded cases use."""
    if adapter.spec.task is Task.QUESTION_ANSWERING:
        return {"start_logits": values[:, 0], "end_logits": values[:, 1]}
    return {"logits": values}


def answer_alone(base: Base, encodings: Sequence[Encoding], adapter: Adapter | None) -> list[SampleOutput]:
    """The engine's answer to each input in a batch of its own."""
    rows = [_Row(0, number, encoding, adapter) for number, encoding in enumerate(encodings)]
    answered = asyncio.run(_answer(base, [[row] for row in rows], num_resident=1))
    return [row.output for row in answered if row.output is not None]
