"""What every worker shares: commands as JSON lines on stdin, replies on stdout. Needs torch alone.

{"do": "load", "job": {...}}                      -> {"versions", "rss_bytes", ...}
{"do": "answer", "mode", "budget", "shift"}       -> {"answers": one list of numbers per text, null where none is given}
{"do": "time", "mode", "budget"}                  -> {"seconds"}
{"do": "quit"}, or the end of stdin, ends the worker; what fails is answered by {"error"}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Answers = Sequence[Tensor | None]


@dataclass(slots=True)
class Job:
    """What is asked of every contender.

    base          folder of the base
    texts         token ids of each text, in the order of arrival
    adapters      folders of the workload's adapters; text i goes through number (i + shift) % N
    memory_bytes  what copies of the base may take together
    """

    base: str
    texts: list[list[int]]
    adapters: Sequence[str]
    threads: int
    device: str
    dtype: str
    memory_bytes: int
    shift: int = 0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Job:
        """`texts` comes as the path of a JSON file."""
        return cls(**{**values, "texts": json.loads(Path(values["texts"]).read_text())})

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def adapter_of(self, text: int) -> int:
        return (text + self.shift) % len(self.adapters)

    def batches(self, budget: int) -> Iterator[list[int]]:
        """Texts in the order of arrival, padded rows x longest within the budget; 0 takes one text at a time."""
        batch: list[int] = []
        for text in range(len(self.texts)):
            longest = max(len(self.texts[i]) for i in [*batch, text])
            if batch and (len(batch) + 1) * longest > budget:
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch

    def padded(self, batch: Sequence[int]) -> dict[str, Tensor]:
        """Arguments of a model's forward; without a mask where there is no padding."""
        rows = [self.texts[i] for i in batch]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows]).to(self.device)
        if all(len(row) == longest for row in rows):
            return {"input_ids": ids}
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask.to(self.device)}


@dataclass(slots=True)
class Loaded:
    """A contender that is ready.

    modes           a whole pass over the texts with a token budget, by name; answers lie on the host
    bytes_per_task  what one more adapter or model takes, where it is known
    num_tasks       for how many adapters there was room, None for all of them
    """

    versions: dict[str, str]
    modes: Mapping[str, Callable[[int], Answers]]
    bytes_per_task: int | None = None
    num_tasks: int | None = None


def serve(load: Callable[[Job], Loaded]) -> None:
    """Answer commands until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    worker = _Worker(load)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "quit":
            return
        try:
            reply = getattr(worker, command.pop("do"))(**command)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(reply), file=replies, flush=True)


class _Worker:
    """The commands."""

    def __init__(self, load: Callable[[Job], Loaded]) -> None:
        self._load = load
        self._job: Job | None = None
        self._loaded: Loaded | None = None

    def load(self, job: dict[str, Any]) -> dict[str, Any]:
        self._job = Job.read(job)
        torch.set_num_threads(self._job.threads)
        loaded = self._loaded = self._load(self._job)
        return {
            "versions": {"torch": torch.__version__} | loaded.versions,
            "rss_bytes": rss_bytes(),
            "bytes_per_task": loaded.bytes_per_task,
            "num_tasks": loaded.num_tasks,
        }

    def answer(self, mode: str, budget: int, shift: int = 0) -> dict[str, Any]:
        answers, _ = self._run(mode, budget, shift)
        return {"answers": [None if answer is None else answer.tolist() for answer in answers]}

    def time(self, mode: str, budget: int) -> dict[str, Any]:
        return {"seconds": self._run(mode, budget, 0)[1]}

    @torch.inference_mode()
    def _run(self, mode: str, budget: int, shift: int) -> tuple[Answers, float]:
        assert self._job is not None and self._loaded is not None, "load comes first"
        self._job.shift = shift
        work = self._loaded.modes[mode]
        started = time.perf_counter()
        answers = work(budget)
        return answers, time.perf_counter() - started


def rss_bytes() -> int:
    """Resident memory of this process; its peak where the system does not tell the present."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
