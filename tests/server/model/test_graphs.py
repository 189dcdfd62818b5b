"""Passes replayed from graphs. The graph itself needs a GPU; here the same static pass is called again in its place."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_bases import save_base
from test_joined import slot_of
from test_runner import leases, make_adapter, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from server.composition import Leaf, Node, Stack
from server.config import ModelConfig
from server.core import Batch, Encoding, SampleOutput, TokenInput
from server.metrics import Metrics
from server.model import graphs as graphing
from server.model.attention import AttentionRun
from server.model.base import Base, load_base
from server.model.graphs import BUCKETS, MAX_HIDDEN, GraphedForward, bucket_of, graphs, max_samples
from server.model.phases import HostPhase
from server.model.routing import Route, RoutingPlan
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.model.weights import SlotWeights
from server.primitives import Task

triton = pytest.importorskip("triton", reason="triton is not installed")
CPU = torch.device("cpu")
Pass = Callable[[], Tensor]


def again(work: Pass) -> Pass:
    """In place of a capture."""
    return work


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    if not triton.knobs.runtime.interpret:
        pytest.skip("these tests run in the interpreter")
    loaded = load_base(
        ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))), device="cpu", backend="triton")
    )
    loaded.model.embeddings.word_embeddings.weight[0] = float("nan")  # of padding: whoever reads it shows it
    return loaded


def phase_of(base: Base, bank: dict[int, SlotWeights], nodes: list[Node | None], lengths: list[int]) -> HostPhase:
    rng = random.Random(sum(lengths))
    texts = [tuple(rng.randint(3, 69) for _ in range(n)) for n in lengths]
    rows = base.packer.rows([Encoding(ids, (0,) * len(ids), TokenInput(ids)) for ids in texts])
    plan = RoutingPlan(bank, [Route(node) for node in nodes], rows.spans)
    return HostPhase(0, rows, plan, base.packer.prepare(plan, rows.num_tokens))


def slots(base: Base, seeds: tuple[int, ...]) -> dict[int, SlotWeights]:
    """Bottlenecks; what is all fused of those the runner's tests make."""
    bank = SlotBank(CPU, torch.float32)
    for slot, seed in enumerate(seeds, 1):
        bank.write(slot, make_adapter(base, seed, None))
    return {slot: bank[slot] for slot in range(1, len(seeds) + 1)}


def check(base: Base, graphed: GraphedForward, phase: HostPhase) -> None:
    with torch.inference_mode():
        got = graphed.run([phase], base.forward)
        want = base.run([phase])
    assert got is not None and torch.isfinite(got).all()
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


MIXES: list[tuple[list[Node | None], list[int]]] = [
    ([Leaf(1), Leaf(2), None], [5, 9, 3]),
    ([None], [1]),
    ([Leaf(2)], [32]),
    ([None, Leaf(1), Leaf(1), Leaf(2)], [17, 16, 1, 30]),
    ([Leaf(1)] * 8, [8] * 8),
]


@pytest.mark.parametrize(("nodes", "lengths"), MIXES)
@pytest.mark.parametrize("bank_of", [lambda base: slots(base, (3, 6)), lambda base: {1: lora(1), 2: lora(2)}])
def test_a_replayed_pass_gives_what_the_ordinary_one_gives(
    base: Base, bank_of: Callable[[Base], dict[int, SlotWeights]], nodes: list[Node | None], lengths: list[int]
) -> None:
    check(base, GraphedForward(CPU, again), phase_of(base, bank_of(base), nodes, lengths))


def lora(number: int) -> SlotWeights:
    """Deltas that are all fused."""
    made = slot_of(number, (0, 2) if number == 1 else (1,))
    return replace(made, projections={at: d for at, d in made.projections.items() if d.gate is None})


def test_one_capture_serves_every_batch_of_its_bucket(base: Base) -> None:
    captured: list[Pass] = []

    def capture(work: Pass) -> Pass:
        captured.append(work)
        return work

    graphed, bank = GraphedForward(CPU, capture), slots(base, (3, 6))
    check(base, graphed, phase_of(base, bank, [Leaf(1), Leaf(2)], [10, 12]))
    check(base, graphed, phase_of(base, bank, [Leaf(2), None, Leaf(1)], [3, 20, 4]))
    check(base, graphed, phase_of(base, bank, [Leaf(1)], [32]))
    assert len(captured) == len(graphed) == 1


def test_a_slot_that_is_written_anew_is_read_anew(base: Base) -> None:
    graphed = GraphedForward(CPU, again)
    answers = []
    for seeds in ((3, 6), (6, 3)):
        phase = phase_of(base, slots(base, seeds), [Leaf(1), Leaf(2)], [10, 12])
        check(base, graphed, phase)
        with torch.inference_mode():
            answers.append(base.run([phase]))
    assert len(graphed) == 1
    assert not torch.allclose(answers[0][:10], answers[1][:10])
    assert not torch.allclose(answers[0][10:], answers[1][10:])


class Ops(TorchDispatchMode):
    """Every operation with the shapes it sees, and where the static buffer's tensors lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else repr(x) for x in args if not isinstance(x, list)]
        self.seen.append((str(func), *shapes))
        return func(*args, **(kwargs or {}))


def test_nothing_that_is_captured_depends_on_the_batch(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[object] = []
    ops: list[Ops] = []

    def launch(name: str) -> Callable[..., None]:
        def record(out: Tensor, *args: Any) -> None:
            at = next(x for x in args if hasattr(x, "tiles"))
            where = (at.tiles.data_ptr(), at.segments.data_ptr(), at.tiles.shape, at.segments.shape)
            launches.append((name, out.shape, where, at.alignment, at.block_r))
            out.zero_()

        return record

    def capture(work: Pass) -> Pass:
        def replay() -> Tensor:
            ops.append(Ops())
            with ops[-1]:
                return work()

        return replay

    monkeypatch.setattr("server.model.kernels.triton.launch_site", launch("site"))
    monkeypatch.setattr("server.model.kernels.triton.launch_delta", launch("delta"))
    # On a GPU attention gets offsets in the buffer and the bucket's bound; on a CPU it would ask for lengths.
    monkeypatch.setattr("server.model.attention.attention_runs", lambda *_: [AttentionRun(0, 1, 64)])
    graphed, bank = GraphedForward(CPU, capture), {1: lora(1), 2: lora(2), **{3: slots(base, (3,))[1]}}
    with torch.inference_mode():
        for nodes, lengths in (
            ([Leaf(1), Leaf(2), Leaf(3)], [9, 20, 10]),
            ([Leaf(2), Leaf(3), None, Leaf(1)], [33, 1, 2, 20]),
        ):
            graphed.run([phase_of(base, bank, nodes, lengths)], base.forward)
    assert len(graphed) == 1 and len(ops) == 2
    half = len(launches) // 2
    assert half and launches[:half] == launches[half:]
    assert ops[0].seen and ops[0].seen == ops[1].seen


def test_other_work_is_not_for_graphs(base: Base) -> None:
    bank = {**slots(base, (3, 6)), 3: slot_of(3, (0, 1, 2))}
    assert bucket_of([phase_of(base, bank, [Leaf(1)], [30])]) == 32
    assert bucket_of([phase_of(base, bank, [Stack((Leaf(1), Leaf(2)))], [30])]) is None
    assert bucket_of([phase_of(base, bank, [Leaf(3)], [30])]) is None  # one of its deltas has a gate
    assert bucket_of([phase_of(base, bank, [Leaf(1)] * 20, [30] * 20)]) is None
    assert bucket_of([phase_of(base, bank, [Leaf(1)], [30])] * 2) is None
    few = max_samples(BUCKETS[0])
    assert bucket_of([phase_of(base, bank, [Leaf(1)] * (few + 1), [1] * (few + 1))]) == BUCKETS[1]
    unprepared = replace(phase_of(base, bank, [Leaf(1)], [30]), prepared=None)
    assert bucket_of([unprepared]) is None


def test_graphs_are_bounded_in_number(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphing, "MAX_GRAPHS", 1)
    graphed, bank = GraphedForward(CPU, again), slots(base, (3,))
    check(base, graphed, phase_of(base, bank, [Leaf(1)], [10]))
    with torch.inference_mode():
        assert graphed.run([phase_of(base, bank, [Leaf(1)], [40])], base.forward) is None
    check(base, graphed, phase_of(base, bank, [Leaf(1)], [12]))


def test_a_capture_that_fails_is_logged_and_leaves_passes_as_they_were(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Pass] = []

    def capture(work: Pass) -> Pass:
        tried.append(work)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed, bank = GraphedForward(CPU, capture), slots(base, (3,))
    with torch.inference_mode():
        assert [graphed.run([phase_of(base, bank, [Leaf(1)], [n])], base.forward) for n in (10, 20, 40)] == [None] * 3
    assert len(tried) == 1 and "could not be captured" in caplog.text


def test_a_capture_that_lacks_memory_is_tried_again(base: Base) -> None:
    failures = [torch.OutOfMemoryError("CUDA out of memory")]

    def capture(work: Pass) -> Pass:
        if failures:
            raise failures.pop()
        return work

    graphed, bank = GraphedForward(CPU, capture), slots(base, (3,))
    with torch.inference_mode():
        first, second = (graphed.run([phase_of(base, bank, [Leaf(1)], [10])], base.forward) for _ in range(2))
    assert first is None and second is not None


def test_where_passes_cannot_be_captured_there_are_no_graphs() -> None:
    assert graphs(CPU, torch.bfloat16, 768) is None
    assert graphs(torch.device("cuda"), torch.float32, 768) is None
    assert graphs(torch.device("cuda"), torch.bfloat16, MAX_HIDDEN + 1) is None


async def test_a_runner_answers_the_same_with_graphs(base: Base) -> None:
    rng = random.Random(0)
    adapters = [None, *(make_adapter(base, seed, Task.CLASSIFICATION) for seed in range(1, 7))]
    outcomes = []
    samples = [sample(rng.choice(adapters), rng.randint(1, 20), seed, return_hidden=True) for seed in range(30)]
    graphed = GraphedForward(CPU, again)
    for own in (base, replace(base, graphs=graphed)):
        runner = Runner(own, SlotBank(own.device, own.dtype), Metrics())
        batches = [samples[i : i + 3] for i in range(0, 30, 3)]
        outcomes.append([o for batch in batches for o in runner.execute(Batch(batch, leases(batch)))])
    assert len(graphed) > 0
    for got, want in zip(*outcomes, strict=True):
        assert isinstance(got, SampleOutput) and isinstance(want, SampleOutput)
        np.testing.assert_allclose(got.values, want.values, atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("nodes", "lengths"), MIXES)
def test_a_captured_pass_gives_what_the_ordinary_one_gives(
    tmp_path: Path, nodes: list[Node | None], lengths: list[int]
) -> None:
    on_gpu = load_base(ModelConfig(base=str(save_base(tmp_path)), device="cuda", backend="triton", dtype="bfloat16"))
    assert on_gpu.graphs is not None
    bank = SlotBank(on_gpu.device, on_gpu.dtype)
    for seeds in ((3, 6), (6, 3), (3, 6)):  # the first captures, the others replay with other weights in the slots
        for slot, seed in enumerate(seeds, 1):
            bank.free(slot)
            bank.write(slot, make_adapter(on_gpu, seed, None))
        bank.settle([1, 2])
        phase = phase_of(on_gpu, {1: bank[1], 2: bank[2]}, nodes, lengths)
        with torch.inference_mode():
            got = on_gpu.run([phase]).clone()
            want = replace(on_gpu, graphs=None).run([phase])
        torch.testing.assert_close(got, want, atol=3e-2, rtol=3e-2)
    assert len(on_gpu.graphs) == 1
