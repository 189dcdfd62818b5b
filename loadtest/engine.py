"""Offline throughput of the engine, without wire and queue."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from loadtest import workload
from loadtest.bench import METHOD, machine, save_bert_base
from loadtest.device import bandwidth, linear_elements, matmul_rate, num_operations, seconds_of
from loadtest.figures import Figure, at_least, at_most
from loadtest.grid import BASE_ONLY, PADDED, Axis, Case, Grid, deal
from loadtest.layers import Share, profile
from loadtest.resident import Memory, Resident
from server.core import Encoding
from server.model.base import Base, locate
from server.model.calibration import LENGTH, calibrate

NUM_ALONE = 20  # single texts per round
Seconds = dict[Case, list[float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    base     minilm, a directory, a hub id, or bert-base: that shape with random weights
    tokens   of one measured run
    """

    base: str
    grid: Grid
    rounds: int
    tokens: int
    device: str
    dtype: str
    command: str


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of a case, round by round. Padding is not counted as tokens."""

    case: Case
    num_samples: int
    num_tokens: int
    seconds: list[float]

    @property
    def tokens_per_s(self) -> float:
        """Of the median round."""
        return self.num_tokens / statistics.median(self.seconds)

    @property
    def samples_per_s(self) -> float:
        return self.num_samples / statistics.median(self.seconds)

    def ratio(self, other: Row) -> float:
        """How many times the tokens/s of `other`: the median over rounds of the two runs of one round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(theirs / own for own, theirs in pairs) * self.num_tokens / other.num_tokens


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of one axis."""

    axis: Axis
    rows: list[Row]

    def row(self, case: Case) -> Row:
        return next(row for row in self.rows if row.case == case)

    def against_base(self, row: Row) -> float:
        return row.ratio(self.row(row.case.reference))


@dataclass(frozen=True, slots=True)
class Knee:
    """Where larger batches stop paying, and what the base alone reaches there.

    rates           tokens/s by tokens per batch
    flops_per_s     of the base alone at the knee, and of the device's fastest dense product
    bytes_per_s     at which a single text reads the base's weights, and the device copies
    """

    rates: dict[int, float]
    budget_tokens: int
    flops_per_s: tuple[float, float]
    bytes_per_s: tuple[float, float]


@dataclass(slots=True)
class Report:
    plan: Plan
    machine: dict[str, str]
    is_cuda: bool = False
    results: list[Result] = field(default_factory=list)
    knee: Knee | None = None
    alone: tuple[list[float], list[float]] = ((), ())  # type: ignore[assignment]
    memory: Memory | None = None
    layers: dict[str, list[Share]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)


def run(plan: Plan) -> Report:
    """Measure everything of `plan`."""
    with Progress() as bar, tempfile.TemporaryDirectory() as folder:
        task = bar.add_task(f"{plan.base}: loading", total=None)
        source = plan.base
        if plan.base == "bert-base":
            save_bert_base(Path(source := folder))
        bench = _Bench(source, plan)
        report = Report(plan, machine(plan.device, plan.dtype), bench.base.device.type == "cuda")

        def tick(what: str) -> None:
            bar.update(task, description=f"{plan.base}: {what}", advance=1)

        bar.update(task, description=f"{plan.base}: the knee")
        report.knee = bench.knee()
        axes = plan.grid.with_budget(report.knee.budget_tokens).axes(bench.base.info.hidden_size)
        bar.update(task, total=sum(len(axis.cases) for axis in axes) * (plan.rounds + 1) + 2)
        tick("one text alone")
        report.alone = bench.alone()
        tick("layers")
        report.layers = bench.layers()
        for axis in axes:
            report.results.append(bench.measure(axis, lambda name=axis.name: tick(name)))  # type: ignore[misc]
        report.memory = bench.engine.memory
        report.figures = figures(report)
    return report


class _Bench:
    """One base, loaded twice: in the engine and in plain transformers."""

    def __init__(self, source: str, plan: Plan) -> None:
        self._plan = plan
        self.engine = Resident(source, plan.device, plan.dtype)
        self.base: Base = self.engine.base
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the pooler is left out on purpose
        self._plain = AutoModel.from_pretrained(
            locate(source), dtype=self.base.dtype, attn_implementation="sdpa", add_pooling_layer=False
        )
        self._plain.to(self.base.device).eval()

    def measure(self, axis: Axis, tick: Callable[[], None]) -> Result:
        """Every case in turn, round by round, so that a drifting machine hits all alike. Dealt anew each round."""
        seconds: Seconds = {case: [] for case in axis.cases}
        for number in range(self._plan.rounds + 1):
            for case in axis.cases:
                elapsed = seconds_of(self._work(case, number), self.base.device)
                if number:  # the first round warms up
                    seconds[case].append(elapsed)
                tick()
        return Result(axis, [self._row(case, times) for case, times in seconds.items()])

    def _row(self, case: Case, seconds: list[float]) -> Row:
        texts = self._texts(case)
        return Row(case, len(texts), sum(text.num_tokens for text in texts), seconds)

    def _texts(self, case: Case) -> list[Encoding]:
        num_tokens = max(case.budget, self._plan.tokens)
        return workload.encodings(num_tokens, self.base.info.vocab_size, seed=1, lengths=case.lengths)

    def _work(self, case: Case, seed: int) -> Callable[[], None]:
        texts = self._texts(case)
        if case.mix == PADDED:
            padded = list(workload.batches(texts, case.budget, workload.padded_cost))
            return lambda: self._run_padded(padded)
        batches = list(workload.batches(texts, case.budget, workload.packed_cost))
        given = deal(case, len(texts), np.random.default_rng(seed))
        own = self.engine.adapters(case.method, case.num_adapters) if case.mix != BASE_ONLY else []
        adapters = [None if index is None else own[index] for index in given]
        return lambda: self.engine.run(batches, adapters)

    @torch.inference_mode()
    def _run_padded(self, batches: Sequence[list[Encoding]]) -> None:
        for texts in batches:
            longest = max(text.num_tokens for text in texts)
            ids = torch.zeros(len(texts), longest, dtype=torch.long)
            mask = torch.zeros(len(texts), longest, dtype=torch.long)
            for row, text in enumerate(texts):
                ids[row, : text.num_tokens] = torch.tensor(text.input_ids)
                mask[row, : text.num_tokens] = 1
            output = self._plain(input_ids=ids.to(self.base.device), attention_mask=mask.to(self.base.device))
            output.last_hidden_state[:, 0].float().cpu()

    def knee(self) -> Knee:
        """The calibration of a server's start, and the device's own limits measured right after."""
        text = self._short_text()
        found = calibrate(lambda num: self.engine.run([[text] * num], [None] * num), max_samples=1 << 20)
        budget = found.budget_tokens
        lengths = [LENGTH] * (budget // LENGTH)
        reached = found.rates[budget] * num_operations(self.base, lengths) / budget
        one = min(
            seconds_of(lambda: self.engine.run([[text]], [None]), self.base.device) for _ in range(self._plan.rounds)
        )
        read = linear_elements(self.base) * self.base.dtype.itemsize / one
        return Knee(found.rates, budget, (reached, matmul_rate(self.base)), (read, bandwidth(self.base)))

    def alone(self) -> tuple[list[float], list[float]]:
        """Seconds of one text: here with its adapter, and in plain transformers, unpadded, without one."""
        text, [adapter] = self._short_text(), self.engine.adapters(METHOD, 1)
        ours, theirs = [], []
        for number in range(NUM_ALONE * (self._plan.rounds + 1)):
            own = seconds_of(lambda: self.engine.run([[text]], [adapter]), self.base.device)
            other = seconds_of(lambda: self._run_plain(text), self.base.device)
            if number >= NUM_ALONE:
                ours.append(own)
                theirs.append(other)
        return ours, theirs

    @torch.inference_mode()
    def _run_plain(self, text: Encoding) -> None:
        ids = torch.tensor([text.input_ids], device=self.base.device)
        self._plain(input_ids=ids).last_hidden_state[:, 0].float().cpu()

    def _short_text(self) -> Encoding:
        [text] = workload.encodings(1, self.base.info.vocab_size, seed=1, lengths="all 32")
        return text

    def layers(self) -> dict[str, list[Share]]:
        """The base alone, and distinct adapters, on the texts of the centre."""
        grid = self._plan.grid
        case = Case("distinct", grid.num_adapters, METHOD, grid.budget, grid.lengths)
        works = {"base only": self._work(case.reference, 0), "distinct adapters": self._work(case, 0)}
        return {name: profile(self.base, work, self._plan.rounds) for name, work in works.items()}


def figures(report: Report) -> list[Figure]:
    """What the targets are about, as far as the plan measured it."""
    found: list[Figure] = []
    is_cuda = report.is_cuda
    by_axis = {result.axis.name: result for result in report.results}
    if mixes := by_axis.get("adapter mix"):
        rows = {row.case.mix: row for row in mixes.rows}
        many = report.plan.grid.num_adapters
        found.append(at_least(f"{many} distinct adapters / base only", rows["distinct"].ratio(rows[BASE_ONLY]), 0.97))
        found.append(at_least("distinct / identical adapters", rows["distinct"].ratio(rows["identical"]), 0.98))
    if counts := by_axis.get("resident adapters, zipf"):
        by_count = {row.case.num_adapters: row for row in counts.rows}
        most = max(by_count)
        if {32, 1000} <= by_count.keys():
            found.append(at_least(f"{most:,} resident adapters, zipf / 32", by_count[most].ratio(by_count[32]), 0.97))
    if budgets := by_axis.get("tokens per batch"):
        best = max((r for r in budgets.rows if r.case.mix == "distinct"), key=lambda row: row.tokens_per_s)
        padded = max((r for r in budgets.rows if r.case.mix == PADDED), key=lambda row: row.tokens_per_s)
        limit = 3.0 if is_cuda else 1.8
        found.append(at_least("distinct adapters / transformers, padded, without", best.ratio(padded), limit))
    if report.knee and budgets:
        own = next(r for r in budgets.rows if r.case.mix == "distinct" and r.case.budget == report.knee.budget_tokens)
        name = f"distinct adapters / base only, {own.case.budget} tokens per batch (the knee)"
        found.append(at_least(name, budgets.against_base(own), 0.97))
    if report.knee:
        reached, limit_rate = report.knee.flops_per_s
        found.append(
            at_least("base only at the knee / dense matmul rate", reached / limit_rate, 0.5 if is_cuda else 0.75)
        )
    if report.memory:
        found.append(at_most("resident bytes of an adapter / its weights", report.memory.ratio, 1.1))
    if report.alone[0]:
        ratio = statistics.median(a / b for a, b in zip(*report.alone, strict=True))
        found.append(at_most("one text and adapter / transformers without", ratio, 0.5 if is_cuda else 1.1))
    return found
