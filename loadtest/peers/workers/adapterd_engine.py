"""Ours: the engine without wire and queue, on packed batches; adapters come from the same folders as a server's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from protocol import Answers, Job, Loaded, serve
from torch import Tensor

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from loadtest import workload
from loadtest.bench import batch_of
from server.config import ModelConfig
from server.core import Adapter, Encoding, SampleOutput, Target, TokenInput, target_of
from server.metrics import Metrics
from server.model.base import load_base
from server.model.runner import Runner
from server.model.slots import SlotBank


def load(job: Job) -> Loaded:
    engine = _Engine(job)
    modes = {"base": engine.base_only} | {
        kind: engine.mixed(kind, [engine.place(Path(folder)) for folder in folders])
        for kind, folders in job.adapters.items()
    }
    return Loaded({"transformers": transformers.__version__}, modes, engine.bytes_per_task)


class _Engine:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._base = load_base(ModelConfig(base=job.base, device=job.device, dtype=job.dtype, num_threads=job.threads))
        self._bank = SlotBank(self._base.device, self._base.dtype)
        self._runner = Runner(self._base, self._bank, Metrics())
        self._slots: dict[str, int] = {}
        self._texts = [Encoding(tuple(ids), (0,) * len(ids), TokenInput(tuple(ids))) for ids in job.texts]
        self.bytes_per_task: dict[str, int] = {}

    def place(self, folder: Path) -> Adapter:
        """Read an adapter and write it into a slot of its own."""
        adapter = build_adapter(read_checkpoint(folder), self._base.info, self._base.dtype, self._base)
        self._slots[adapter.digest] = len(self._slots) + 1
        self._bank.write(self._slots[adapter.digest], adapter)
        return adapter

    def mixed(self, kind: str, adapters: Sequence[Adapter]) -> Callable[[int], Answers]:
        """Text i goes through the adapter that the job says."""
        self.bytes_per_task[kind] = max(self._bank.slot_bytes(adapter) for adapter in adapters)
        targets = [target_of(adapter) for adapter in adapters]
        return lambda budget: self._run(budget, lambda text: targets[self._job.adapter_of(text, kind)])

    def base_only(self, budget: int) -> Answers:
        return self._run(budget, lambda _: target_of(None))

    def _run(self, budget: int, target_of_text: Callable[[int], Target]) -> Answers:
        pairs = [(text, target_of_text(i)) for i, text in enumerate(self._texts)]
        answers: list[Tensor] = []
        for batch in workload.batches(self._texts, budget, workload.packed_cost):
            own = pairs[len(answers) : len(answers) + len(batch)]
            for outcome in self._runner.execute(batch_of(own, self._slots)):
                if not isinstance(outcome, SampleOutput):
                    raise outcome
                answers.append(torch.from_numpy(outcome.values))
        return answers


if __name__ == "__main__":
    serve(load)
