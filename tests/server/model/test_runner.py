"""Batches through the runner: mixed equals alone, late work is left out, failures stay in their batch."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from mmap import PAGESIZE

import numpy as np
import pytest
import torch
from make_bases import save_base

from server.config import ModelConfig
from server.core import BASE, Adapter, Batch, Encoding, Manifest, Pooling, Sample, SampleOutput, TokenInput, target_of
from server.errors import DeadlineExceeded, Internal
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.heads import to_host
from server.model.runner import Outcome, Runner
from server.model.slots import SlotBank
from server.primitives import (
    AdapterSpec,
    Affine,
    Bottleneck,
    BottleneckStyle,
    Head,
    HeadLayer,
    Residual,
    SiteKind,
    Task,
    TensorSlice,
)

STYLES = [
    BottleneckStyle("relu", False, True, True, Residual.INPUT, False, False, False, False),
    BottleneckStyle("gelu", True, False, True, Residual.INPUT, False, False, False, False),
    BottleneckStyle("swish", False, False, False, Residual.INPUT, False, False, False, False),
]


@dataclass
class Lease:
    adapter: Adapter | None
    slot: int
    is_fresh: bool = True

    def release(self, *, failed: bool = False) -> None: ...


class _Layout:
    """Hands out slices of one flat buffer."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, *shape: int) -> TensorSlice:
        where = TensorSlice(self.size, shape)
        self.size += where.num_elements
        return where

    def affine(self, out: int, *rest: int) -> Affine:
        return Affine(self.take(out, *rest), self.take(out))


def make_adapter(base: Base, seed: int, task: Task | None) -> Adapter:
    layout, hidden, rng = _Layout(), base.info.hidden_size, random.Random(seed)
    style, width = STYLES[seed % len(STYLES)], rng.choice([1, 4, 16])
    sites = {
        (layer, kind): Bottleneck(
            style, width, layout.affine(width, hidden), layout.affine(hidden, width), None, None, None, None
        )
        for layer in range(base.info.num_layers)
        for kind in SiteKind
        if rng.random() < 0.8
    }
    head = None
    if task is not None:
        layers = (HeadLayer(layout.affine(hidden, hidden), "tanh"), HeadLayer(layout.affine(3, hidden), None))
        reads_tokens = task is Task.TOKEN_CLASSIFICATION
        head = Head("head", task, layers, ("a", "b", "c"), reads_tokens, use_pooler=seed % 2 == 1)
    spec = AdapterSpec(sites, head, layout.size)
    weights = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed)) * 0.2
    manifest = Manifest(f"a{seed}", f"digest-{seed}", "bottleneck", base.info.model_type, hidden, layout.size)
    return Adapter(manifest, spec, weights, weights.nbytes)


def sample(adapter: Adapter | None, length: int, seed: int, **changes: object) -> Sample:
    ids = tuple(random.Random(seed).choices(range(5, 70), k=length))
    encoding = Encoding(ids, (0,) * length, TokenInput(ids))
    pooling = list(Pooling)[seed % 3]
    made = Sample(encoding, target_of(adapter), pooling, asyncio.get_running_loop().create_future(), None)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def hidden_of(outcome: SampleOutput) -> np.ndarray:
    assert outcome.branches[0].hidden is not None
    return outcome.branches[0].hidden


def leases(samples: list[Sample]) -> Mapping[str, Lease]:
    adapters = {part.digest: part for s in samples for part in s.target.parts}
    return {digest: Lease(part, slot) for slot, (digest, part) in enumerate(adapters.items(), start=1)}


@pytest.fixture
def runner(base: Base) -> Runner:
    return Runner(base, SlotBank(base.device, base.dtype), Metrics())


async def test_answer_does_not_depend_on_who_shares_the_batch(base: Base, runner: Runner) -> None:
    tasks = [None, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION]
    adapters = [None, *(make_adapter(base, seed, tasks[seed % 3]) for seed in range(1, 9))]
    rng = random.Random(0)
    samples = [sample(rng.choice(adapters), rng.randint(1, 30), seed, return_hidden=True) for seed in range(40)]
    alone = [runner.execute(Batch([s], leases([s])))[0] for s in samples]
    for order in (samples, samples[::-1], rng.sample(samples, len(samples))):
        outcomes = dict(zip(map(id, order), runner.execute(Batch(order, leases(order))), strict=True))
        for s, want in zip(samples, alone, strict=True):
            got = outcomes[id(s)]
            assert isinstance(got, SampleOutput) and isinstance(want, SampleOutput)
            assert got.batch.num_samples == len(samples) and got.batch.num_adapters == len(
                {s.digest for s in samples} - {BASE}
            )
            np.testing.assert_allclose(got.values, want.values, atol=2e-5, rtol=1e-4)
            assert hidden_of(got) is not None
            np.testing.assert_allclose(hidden_of(got), hidden_of(want), atol=2e-5, rtol=1e-4)


async def test_late_and_cancelled_samples_are_left_out_of_the_pass(base: Base, runner: Runner) -> None:
    late = sample(None, 4, 1, deadline=time.monotonic() - 1)
    gone = sample(None, 4, 2)
    gone.reply.cancel()
    wanted = sample(None, 4, 3)
    batch = [late, wanted, gone]
    outcomes = runner.execute(Batch(batch, leases(batch)))
    assert isinstance(outcomes[0], DeadlineExceeded) and isinstance(outcomes[2], DeadlineExceeded)
    assert isinstance(outcomes[1], SampleOutput) and outcomes[1].batch.num_samples == 1


async def test_batch_of_late_samples_computes_nothing(base: Base, runner: Runner) -> None:
    batch = [sample(None, 4, 1, deadline=time.monotonic() - 1)]
    assert [type(outcome) for outcome in runner.execute(Batch(batch, leases(batch)))] == [DeadlineExceeded]


async def test_failed_batch_raises_and_the_next_one_is_answered(base: Base, runner: Runner) -> None:
    runner.start()
    try:
        broken = sample(None, 3, 1, encoding=Encoding((10**6,), (0,), TokenInput((10**6,))))
        with pytest.raises(Internal, match="failed on the device"):
            await runner.run(Batch([broken], leases([broken])))
        good = sample(None, 3, 1)
        [outcome] = await runner.run(Batch([good], leases([good])))
        assert isinstance(outcome, SampleOutput)
    finally:
        runner.stop()


async def test_pooling_is_each_samples_own(base: Base, runner: Runner) -> None:
    samples = [sample(None, 5, 4, pooling=pooling, return_hidden=True) for pooling in Pooling]
    outcomes = runner.execute(Batch(samples, leases(samples)))
    hidden = hidden_of(outcomes[0])
    want = {Pooling.CLS: hidden[0], Pooling.MEAN: hidden.mean(axis=0), Pooling.LAST: hidden[-1]}
    for s, outcome in zip(samples, outcomes, strict=True):
        np.testing.assert_allclose(outcome.values, want[s.pooling], atol=1e-6)


async def test_slot_bytes_count_what_a_written_slot_holds(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = load_base(ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))), device="cpu"))
    bank, adapter = SlotBank(base.device, base.dtype), make_adapter(base, 1, None)
    bank.write(3, adapter)
    assert 0 <= bank.slot_bytes(adapter) - adapter.weights.nbytes < PAGESIZE
    bank.free(3)
    assert len(bank) == 0


async def test_a_slot_on_a_cpu_takes_no_memory_besides_the_hosts(base: Base) -> None:
    bank, adapter = SlotBank(base.device, base.dtype), make_adapter(base, 1, None)
    bank.write(1, adapter)
    weight = next(iter(bank[1].sites.values())).down.weight
    assert weight.untyped_storage().data_ptr() == adapter.weights.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [
        (False, ["begin", "wait", "begin", "wait", "begin", "wait"]),
        (True, ["begin", "begin", "wait", "begin", "wait", "wait"]),
    ],
)
async def test_one_batch_is_launched_ahead_of_the_results_of_the_one_before(
    base: Base, monkeypatch: pytest.MonkeyPatch, overlaps: bool, expected: list[str]
) -> None:
    events: list[str] = []

    def recorded(tensors: Sequence[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        events.append("begin")
        arriving = to_host(tensors)
        return lambda: events.append("wait") or arriving()  # type: ignore[func-returns-value]

    monkeypatch.setattr("server.model.runner.to_host", recorded)
    runner = Runner(base, SlotBank(base.device, base.dtype), Metrics(), overlaps=overlaps)
    adapter = make_adapter(base, 1, Task.CLASSIFICATION)
    batches = [[sample(adapter, 5, seed)] for seed in range(3)]
    running = [asyncio.create_task(runner.run(Batch(own, leases(own)))) for own in batches]
    await asyncio.sleep(0)  # all are handed over
    runner.start()
    outcomes = await asyncio.gather(*running)
    await asyncio.to_thread(runner.stop)
    assert events == expected
    assert all(isinstance(outcome, SampleOutput) for [outcome] in outcomes)


@pytest.mark.parametrize("overlaps", [False, True])
async def test_a_failure_between_two_batches_is_its_own(
    base: Base, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    runner = Runner(base, SlotBank(base.device, base.dtype), Metrics(), overlaps=overlaps)
    adapter = make_adapter(base, 1, Task.CLASSIFICATION)
    batches = [Batch(own, leases(own)) for own in ([sample(adapter, 5, seed)] for seed in range(3))]
    launch = runner.launch

    def failing(batch: Batch) -> Callable[[], list[Outcome]]:
        if batch is batches[1]:
            raise RuntimeError("out of luck")
        return launch(batch)

    monkeypatch.setattr(runner, "launch", failing)
    running = [asyncio.create_task(runner.run(batch)) for batch in batches]
    await asyncio.sleep(0)
    runner.start()
    first, second, third = await asyncio.gather(*running, return_exceptions=True)
    await asyncio.to_thread(runner.stop)
    assert isinstance(second, Internal) and isinstance(first, list) and isinstance(third, list)
    assert isinstance(first[0], SampleOutput) and isinstance(third[0], SampleOutput)


async def test_nothing_keeps_the_weights_of_a_slot_that_was_freed(base: Base) -> None:
    bank = SlotBank(base.device, base.dtype)
    runner = Runner(base, bank, Metrics())
    samples = [sample(make_adapter(base, 1, Task.CLASSIFICATION), 5, 1)]
    given = leases(samples)
    runner.execute(Batch(samples, given))
    [slot] = {lease.slot for lease in given.values() if lease.slot}
    flat = weakref.ref(next(iter(bank[slot].sites.values())).down.weight)
    bank.free(slot)
    gc.collect()
    assert flat() is None
