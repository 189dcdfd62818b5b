"""What a device does in which order, and that nobody waits for it inside a pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from make_bases import save_base
from test_runner import leases, make_adapter, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from server.config import ModelConfig
from server.core import Batch, SampleOutput
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.model.upload import download
from server.primitives import Task

aten = torch.ops.aten
# Each makes the host wait for a GPU: values read back, sizes that depend on values, and tensors made of Python numbers.
WAITING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.lift_fresh.default),
    *(aten.index.Tensor, aten.repeat_interleave.Tensor, aten.unique_dim.default, aten._unique2.default),
}


class NobodyWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


class Recorded:
    """Streams that write down what happens. A mark is a number."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._marks = 0
        self._is_copying = False

    @contextmanager
    def copying(self) -> Iterator[None]:
        self._is_copying = True
        yield
        self._is_copying = False

    def mark(self) -> str:
        assert self._is_copying
        self._marks += 1
        self.events.append(f"copy {self._marks}")
        return f"{self._marks}"

    def wait(self, mark: object) -> None:
        assert not self._is_copying
        self.events.append(f"wait {mark}")

    def lend(self, tensor: Tensor) -> None:
        self.events.append(f"lend {tensor.numel()}")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))), device="cpu"))


def test_a_batch_waits_for_the_slots_that_it_uses_once_and_for_no_others(bert: Base) -> None:
    order, adapters = Recorded(), [make_adapter(bert, seed, None) for seed in (1, 2)]
    bank = SlotBank(bert.device, bert.dtype, order)
    for slot, adapter in enumerate(adapters, 1):
        bank.write(slot, adapter)
    sizes = [adapter.weights.numel() for adapter in adapters]
    assert order.events == ["copy 1", f"lend {sizes[0]}", "copy 2", f"lend {sizes[1]}"]
    order.events.clear()
    bank.settle([2])
    bank.settle([2])
    assert order.events == ["wait 2"]
    bank.settle([1, 2])
    assert order.events == ["wait 2", "wait 1"]


def test_a_slot_that_is_written_anew_is_waited_for_anew(bert: Base) -> None:
    order, adapter = Recorded(), make_adapter(bert, 1, None)
    bank = SlotBank(bert.device, bert.dtype, order)
    bank.write(1, adapter)
    bank.free(1)
    bank.write(1, adapter)
    bank.settle([1])
    assert [event for event in order.events if event.startswith("wait")] == ["wait 2"]


async def test_a_pass_begins_when_its_own_slots_are_written(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    order, base_run = Recorded(), Base.run

    def run(self: Base, phases: Any) -> Tensor:
        order.events.append("pass")
        return base_run(self, phases)

    monkeypatch.setattr(Base, "run", run)
    runner = Runner(bert, SlotBank(bert.device, bert.dtype, order), Metrics())
    samples = [sample(make_adapter(bert, seed, None), 4, seed) for seed in (1, 2)]
    runner.execute(Batch(samples, leases(samples)))
    kinds = [event.split()[0] for event in order.events]
    assert kinds == ["copy", "lend", "copy", "lend", "wait", "wait", "pass"]


@pytest.mark.parametrize("backend", ["eager", "triton"])
async def test_nobody_waits_for_the_device_before_the_answers(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    base = load_base(ModelConfig(base=str(save_base(tmp_path)), device="cpu", backend=backend))
    runner = Runner(base, SlotBank(base.device, base.dtype), Metrics())
    tasks = [None, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION]
    adapters = [None, *(make_adapter(base, seed, tasks[seed % 3]) for seed in range(1, 6))]
    rng = random.Random(0)
    samples = [sample(rng.choice(adapters), rng.randint(1, 30), seed, return_hidden=True) for seed in range(20)]
    downloads: list[int] = []
    monkeypatch.setattr(
        "server.model.heads.download", lambda tensor: downloads.append(tensor.numel()) or (lambda: tensor)
    )
    if backend == "triton":  # its interpreter reads memory as it likes; what is launched is no tensor's business
        monkeypatch.setattr("server.model.kernels.triton.launch_site", lambda out, *_: out.zero_())
        monkeypatch.setattr("server.model.kernels.triton.launch_delta", lambda *_: None)
    with NobodyWaits():
        outcomes = runner.execute(Batch(samples, leases(samples)))
    assert all(isinstance(outcome, SampleOutput) for outcome in outcomes)
    assert len(downloads) == 1


@pytest.mark.gpu
async def test_a_gpu_is_waited_for_once_per_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(ModelConfig(base=str(save_base(tmp_path)), device="cuda", backend="triton", dtype="bfloat16"))
    runner = Runner(base, SlotBank(base.device, base.dtype), Metrics())
    adapters = [None, *(make_adapter(base, seed, Task.CLASSIFICATION) for seed in range(1, 6))]
    samples = [sample(adapters[seed % 6], 4 + seed, seed, return_hidden=True) for seed in range(20)]
    runner.execute(Batch(samples, leases(samples)))  # compiles, and fills the allocators
    downloads: list[int] = []

    def counted(tensor: Tensor) -> Callable[[], Tensor]:
        downloads.append(tensor.numel())
        return download(tensor)

    monkeypatch.setattr("server.model.heads.download", counted)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcomes = runner.execute(Batch(samples, leases(samples)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(isinstance(outcome, SampleOutput) for outcome in outcomes)
    assert len(downloads) == 1
