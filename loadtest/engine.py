"""Offline throughput of the engine, without wire and queue."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import AutoModel, BertConfig, BertModel

from adapters_cache.build import build_adapter
from adapters_cache.formats.configs import canonical_config
from loadtest import workload
from loadtest.bench import batch_of, machine
from server.config import ModelConfig
from server.core import Adapter, Batch, Encoding, target_of
from server.metrics import Metrics
from server.model.base import Base, load_base, locate
from server.model.runner import Runner
from server.model.slots import SlotBank
from training.parameters import new_checkpoint, new_head

METHOD = "seq_bn[reduction_factor=16]"
MIN_TOKENS = 8192  # of one measured round
PADDED, BASE_ONLY, ONE, DISTINCT = "transformers, padded", "base only", "one adapter", "distinct adapters"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    bases: tuple[str, ...]
    budgets: tuple[int, ...]
    num_adapters: int
    rounds: int
    device: str
    dtype: str
    backend: str = "eager"


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of each contender, round by round, at one token budget. Padding is not counted as tokens."""

    base: str
    budget: int
    num_samples: int
    num_tokens: int
    seconds: dict[str, list[float]]

    def tokens_per_s(self, contender: str) -> float:
        """Of the median round."""
        return self.num_tokens / statistics.median(self.seconds[contender])

    def ratio(self, a: str, b: str) -> float:
        """How many times as fast a is as b: the median over rounds of the two runs of one round."""
        pairs = zip(self.seconds[a], self.seconds[b], strict=True)
        return statistics.median(theirs / own for own, theirs in pairs)


@dataclass(slots=True)
class Report:
    plan: Plan
    machine: dict[str, str]
    command: str
    rows: list[Row] = field(default_factory=list)


class EngineBench:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def run(self) -> Report:
        plan = self._plan
        report = Report(plan, machine(plan.device, plan.dtype), _command(plan))
        with Progress() as bar, tempfile.TemporaryDirectory() as folder:
            task = bar.add_task("engine", total=len(plan.bases) * len(plan.budgets) * (plan.rounds + 1))
            for name in plan.bases:
                source = _random_bert_base(Path(folder)) if name == "bert-base" else name
                contenders = _Contenders(source, plan)
                for budget in plan.budgets:
                    bar.update(task, description=f"{name}, {budget} tokens per batch")
                    row = contenders.measure(budget, lambda: bar.advance(task))
                    report.rows.append(replace(row, base=name))
        return report


class _Contenders:
    """One base, loaded twice: in the engine and in plain transformers."""

    def __init__(self, source: str, plan: Plan) -> None:
        self._plan = plan
        self._base = load_base(ModelConfig(base=source, device=plan.device, dtype=plan.dtype, backend=plan.backend))
        self._plain = AutoModel.from_pretrained(
            locate(source), dtype=self._base.dtype, attn_implementation="sdpa", add_pooling_layer=False
        )
        self._plain.to(self._base.device).eval()
        self._bank = SlotBank(self._base.device, self._base.dtype)
        self._runner = Runner(self._base, self._bank, Metrics())
        self._adapters = [_adapter(self._base, seed) for seed in range(plan.num_adapters)]
        self._slots = {adapter.digest: slot for slot, adapter in enumerate(self._adapters, start=1)}
        for adapter in self._adapters:
            self._bank.write(self._slots[adapter.digest], adapter)

    def measure(self, budget: int, tick: Callable[[], None]) -> Row:
        """Every contender in turn, round by round, so that a drifting machine hits all alike."""
        num_tokens = max(budget, MIN_TOKENS)
        texts = workload.encodings(num_tokens, self._base.info.vocab_size, seed=budget)
        packed = list(workload.batches(texts, budget, workload.packed_cost))
        padded = list(workload.batches(texts, budget, workload.padded_cost))
        contenders: dict[str, Callable[[], None]] = {
            PADDED: lambda: self._run_padded(padded),
            BASE_ONLY: lambda: self._run_packed(packed, 0),
            ONE: lambda: self._run_packed(packed, 1),
            DISTINCT: lambda: self._run_packed(packed, len(self._adapters)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(self._plan.rounds + 1):
            for name, work in contenders.items():
                elapsed = self._timed(work)
                if number:  # the first round warms up
                    seconds[name].append(elapsed)
            tick()
        total = sum(text.num_tokens for text in texts)
        return Row("", budget, len(texts), total, seconds)

    def _timed(self, work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        if self._base.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _run_packed(self, batches: Sequence[list[Encoding]], num_adapters: int) -> None:
        for texts in batches:
            self._runner.execute(self._batch(texts, num_adapters))

    def _batch(self, texts: Sequence[Encoding], num_adapters: int) -> Batch:
        """A batch that deals `num_adapters` adapters out in turn; 0 is the base alone."""
        dealt = [self._adapters[i % num_adapters] if num_adapters else None for i in range(len(texts))]
        return batch_of([(text, target_of(a)) for text, a in zip(texts, dealt, strict=True)], self._slots)

    @torch.inference_mode()
    def _run_padded(self, batches: Sequence[list[Encoding]]) -> None:
        for texts in batches:
            longest = max(text.num_tokens for text in texts)
            ids = torch.zeros(len(texts), longest, dtype=torch.long)
            mask = torch.zeros(len(texts), longest, dtype=torch.long)
            for row, text in enumerate(texts):
                ids[row, : text.num_tokens] = torch.tensor(text.input_ids)
                mask[row, : text.num_tokens] = 1
            device = self._base.device
            output = self._plain(input_ids=ids.to(device), attention_mask=mask.to(device))
            output.last_hidden_state[:, 0].float().cpu()


def _adapter(base: Base, seed: int) -> Adapter:
    """A random adapter with a two-class head."""
    config = canonical_config({"config": METHOD, "version": ""}, has_invertible=False)
    head = new_head(f"a{seed}", base.info, "classification", ("no", "yes"), seed)
    with torch.no_grad():
        return build_adapter(
            new_checkpoint(f"a{seed}", base.info, config, head, seed), base.info, base.dtype, weights=base
        )


def _random_bert_base(folder: Path) -> str:
    """bert-base's shape with random weights: what the arithmetic costs does not depend on their values."""
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    return str(folder)


def _command(plan: Plan) -> str:
    bases = " ".join(f"--base {name}" for name in plan.bases)
    budgets = " ".join(f"--budget {budget}" for budget in plan.budgets)
    return (
        f"python -m loadtest engine {bases} {budgets} --adapters {plan.num_adapters} --rounds {plan.rounds}"
        f" --device {plan.device} --dtype {plan.dtype}"
    )
