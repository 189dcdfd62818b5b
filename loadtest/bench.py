"""What the offline benchmarks share: batches of prepared samples, and the machine they ran on."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from server.core import Adapter, Batch, Encoding, Pooling, Sample, SampleOutput, SlotLease, Target

_LOOP = asyncio.new_event_loop()


@dataclass(slots=True)
class _Lease:
    """A slot that stays written for the whole run."""

    adapter: Adapter | None
    slot: int
    is_fresh: bool = False

    def release(self, *, failed: bool = False) -> None: ...


def batch_of(pairs: Sequence[tuple[Encoding, Target]], slots: Mapping[str, int]) -> Batch:
    """A batch whose adapters lie in `slots`, by digest, already."""
    leases: dict[str, SlotLease] = {}
    samples: list[Sample] = []
    for text, target in pairs:
        leases |= {part.digest: _Lease(part, slots[part.digest]) for part in target.parts}
        reply: asyncio.Future[SampleOutput] = _LOOP.create_future()
        samples.append(Sample(text, target, Pooling.CLS, reply, None))
    return Batch(samples, leases)


def machine(device: str, dtype: str) -> dict[str, str]:
    """What a figure depends on besides the code."""
    is_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return {
        "device": torch.cuda.get_device_name() if is_cuda else _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "dtype": dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.machine()
