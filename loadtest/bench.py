"""What benchmarks share: bases, adapters, batches of prepared samples, and the machine they ran on."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from adapters_cache.build import build_adapter
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.configs import canonical_config
from server.core import Adapter, Batch, Encoding, Pooling, Sample, SampleOutput, SlotLease, Target
from server.model.base import Base
from server.model.runner import Runner
from training.parameters import new_checkpoint, new_head

METHOD = "seq_bn[reduction_factor=16]"
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


def run_all(runner: Runner, batches: Iterable[Batch]) -> None:
    """As a server's runner does: on a GPU the next batch is launched before the results of the last are waited for."""
    finish: Callable[[], object] | None = None
    for batch in batches:
        launched = runner.launch(batch)
        if finish is not None:
            finish()
        finish = launched
    if finish is not None:
        finish()


def random_adapter(base: Base, seed: int, method: str = METHOD) -> Adapter:
    """A random adapter with a two-class head, named `a{seed}`."""
    with torch.no_grad():
        return build_adapter(random_checkpoint(base, seed, method), base.info, base.dtype, weights=base)


def random_checkpoint(base: Base, seed: int, method: str = METHOD) -> Checkpoint:
    """The same as it would be published."""
    config = canonical_config({"config": method, "version": ""}, has_invertible=False)
    head = new_head(f"a{seed}", base.info, "classification", ("no", "yes"), seed)
    return new_checkpoint(f"a{seed}", base.info, config, head, seed, base)


def save_bert_base(folder: Path) -> None:
    """bert-base's shape with random weights: what the arithmetic costs does not depend on their values."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)


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
