"""What other methods cost beside plain bottlenecks, and what `Parallel` saves over separate requests."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from adapters_cache.build import build_adapter
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.configs import canonical_config
from adapters_cache.targets import make_target
from loadtest import workload
from loadtest.bench import batch_of, machine
from loadtest.figures import Figure, at_most
from server.composition import Leaf, Parallel
from server.config import ModelConfig
from server.core import Adapter, Encoding, Target, target_of
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from training.parameters import new_checkpoint, new_head

METHODS = (
    "seq_bn",
    "double_seq_bn",
    "par_bn",
    "compacter",
    "seq_bn_inv",
    "prefix_tuning",
    "prompt_tuning",
    "lora",
    "ia3",
    "vera",
    "dora",
    "loreft",
    "noreft",
    "mam",
    "unipelt",
)
NUM_PARALLEL = 20


@dataclass(frozen=True, slots=True)
class MethodsReport:
    machine: dict[str, str]
    num_tokens: int
    figures: tuple[Figure, ...]


def run(base_name: str, budget: int, rounds: int, device: str, dtype: str) -> MethodsReport:
    """Measure on batches of about `budget` tokens; every contender in turn, the median of `rounds` counts."""
    base = load_base(ModelConfig(base=base_name, device=device, dtype=dtype))
    bench = _Bench(base)
    texts = workload.encodings(budget, base.info.vocab_size, seed=1)
    mixed = [bench.adapter(name, seed) for seed, name in enumerate(METHODS)]
    plain = [bench.adapter("seq_bn", 100 + seed) for seed in range(len(METHODS))]
    late = [bench.adapter("seq_bn", 200 + seed, leave_out=_first_layers(base)) for seed in range(NUM_PARALLEL)]
    few = texts[: max(1, len(texts) // 8)]
    contenders: dict[str, Callable[[], None]] = {
        "plain": bench.of(texts, [target_of(a) for a in plain]),
        "mixed": bench.of(texts, [target_of(a) for a in mixed]),
        "base alone": bench.of(texts, [target_of(None)]),
        "base beside a mix": bench.of(texts, [target_of(None)], beside=[target_of(a) for a in mixed[:1]]),
        "separate": _in_turn([bench.of(few, [target_of(a)]) for a in late]),
        "parallel": bench.of(few, [_parallel(late)]),
    }
    seconds = _measured(contenders, rounds)
    figures = (
        at_most("a batch of every method / the same samples on seq_bn", seconds["mixed"] / seconds["plain"], 2.5),
        at_most(f"Parallel of {NUM_PARALLEL} / as many requests", seconds["parallel"] / seconds["separate"], 0.5),
        at_most(
            "samples without an adapter beside one adapter / alone",
            seconds["base beside a mix"] / seconds["base alone"],
            1.02,
        ),
    )
    return MethodsReport(machine(device, dtype), sum(text.num_tokens for text in texts), figures)


class _Bench:
    def __init__(self, base: Base) -> None:
        self._base = base
        self._bank = SlotBank(base.device, base.dtype)
        self._runner = Runner(base, self._bank, Metrics())
        self._slots: dict[str, int] = {}

    def adapter(self, method: str, seed: int, leave_out: Sequence[int] = ()) -> Adapter:
        """A fresh adapter with a two-class head, in a slot of its own."""
        info = self._base.info
        config = canonical_config({"config": method, "version": "adapters.1.3.0"}, has_invertible=True)
        config = config | {"leave_out": list(leave_out)} if leave_out else config
        name = f"{method}-{seed}"
        head = new_head(name, info, "classification", ("no", "yes"), seed)
        with torch.no_grad():
            checkpoint: Checkpoint = new_checkpoint(name, info, config, head, seed, self._base)
            adapter = build_adapter(checkpoint, info, self._base.dtype, self._base)
        slot = len(self._slots) + 1
        self._slots[adapter.digest] = slot
        self._bank.write(slot, adapter)
        return adapter

    def of(
        self, texts: Sequence[Encoding], targets: Sequence[Target], beside: Sequence[Target] = ()
    ) -> Callable[[], None]:
        """A pass over `texts`, targets dealt out in turn; `beside` ride on one more short text each."""
        pairs = [(text, targets[i % len(targets)]) for i, text in enumerate(texts)]
        shortest = min(texts, key=lambda text: text.num_tokens)
        pairs += [(shortest, target) for target in beside]
        return lambda: self._run(pairs)

    def _run(self, pairs: Sequence[tuple[Encoding, Target]]) -> None:
        self._runner.execute(batch_of(pairs, self._slots))
        if self._base.device.type == "cuda":
            torch.cuda.synchronize()


def _in_turn(passes: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run_all() -> None:
        for one in passes:
            one()

    return run_all


def _first_layers(base: Base) -> list[int]:
    """All but the last third of the layers."""
    return list(range(base.info.num_layers - max(1, base.info.num_layers // 3)))


def _parallel(adapters: Sequence[Adapter]) -> Target:
    by_name = {adapter.manifest.name: adapter for adapter in adapters}
    return make_target(Parallel(tuple(Leaf(name) for name in by_name)), by_name, {})


def _measured(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with Progress() as bar:
        task = bar.add_task("methods", total=rounds + 1)
        for number in range(rounds + 1):
            for name, work in contenders.items():
                started = time.perf_counter()
                work()
                if number:
                    seconds[name].append(time.perf_counter() - started)
            bar.advance(task)
    return {name: statistics.median(values) for name, values in seconds.items()}
