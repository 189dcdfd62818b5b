"""Ours: the engine without wire and queue, on packed batches; adapters come from the same folders as a server's."""

from __future__ import annotations

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
    return Loaded({"transformers": transformers.__version__}, {"packed": engine.run}, engine.bytes_per_task)


class _Engine:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._base = load_base(ModelConfig(base=job.base, device=job.device, dtype=job.dtype, num_threads=job.threads))
        self._bank = SlotBank(self._base.device, self._base.dtype)
        self._runner = Runner(self._base, self._bank, Metrics())
        self._slots: dict[str, int] = {}
        self._texts = [Encoding(tuple(ids), (0,) * len(ids), TokenInput(tuple(ids))) for ids in job.texts]
        self._adapters = [self._place(Path(folder)) for folder in job.adapters]

    @property
    def bytes_per_task(self) -> int | None:
        return max(map(self._bank.slot_bytes, self._adapters), default=None)

    def _place(self, folder: Path) -> Adapter:
        """Read an adapter and write it into a slot of its own."""
        adapter = build_adapter(read_checkpoint(folder), self._base.info, self._base.dtype, self._base)
        self._slots[adapter.digest] = len(self._slots) + 1
        self._bank.write(self._slots[adapter.digest], adapter)
        return adapter

    def run(self, budget: int) -> Answers:
        """A pass over the texts; without adapters, vectors of the first token."""
        answers: list[Tensor] = []
        for batch in workload.batches(self._texts, budget, workload.packed_cost):
            pairs = [(text, self._target(len(answers) + i)) for i, text in enumerate(batch)]
            for outcome in self._runner.execute(batch_of(pairs, self._slots)):
                if not isinstance(outcome, SampleOutput):
                    raise outcome
                answers.append(torch.from_numpy(outcome.values))
        return answers

    def _target(self, text: int) -> Target:
        return target_of(self._adapters[self._job.adapter_of(text)] if self._adapters else None)


if __name__ == "__main__":
    serve(load)
