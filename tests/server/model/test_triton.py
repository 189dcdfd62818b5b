"""The Triton backend against the reference and against recorded cases: in its interpreter, or with TRITON_INTERPRET=0
compiled for the CUDA device at hand.

Sites of mixed styles are swept for every backend in test_kernels.py; here is what only these kernels have to fear:
blocks that do not divide the sizes, long segments, tables, and low-rank deltas.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from recorded import CONFORMANCE
from torch import Tensor, nn
from transformers.activations import ACT2FN

from server.composition import Average, Leaf, Stack
from server.config import ModelConfig
from server.errors import InvalidInput
from server.model.kernels import backend, reference
from server.model.routing import DeltaGroup, Run, Segment, SitePlan
from server.model.weights import AffineWeights, BottleneckWeights, DeltaWeights
from server.primitives import BottleneckStyle, Residual
from server.verify import check

triton = pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("kernels would be compiled, and there is no CUDA device", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
WIDTHS = (1, 3, 24, 64)
ACTIVATIONS = ("linear", "relu", "gelu", "gelu_new", "silu", "tanh", "sigmoid", "leaky_relu")
MIXES = ("identical", "distinct", "uniform", "zipf", "skewed")


def style_of(activation: str = "relu", reads: str = "normed", **changed: bool) -> BottleneckStyle:
    return BottleneckStyle(
        activation=activation,
        is_parallel=reads == "residual",
        original_ln_before=reads == "normed",
        original_ln_after=True,
        residual=Residual.INPUT,
        ln_before=changed.get("ln_before", False),
        ln_after=False,
        adapter_residual_before_ln=False,
        use_gating=False,
    )


def random_of(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Of a size that keeps products near 1."""
    return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(DEVICE, dtype)


def bottleneck_of(
    style: BottleneckStyle, width: int, hidden: int, dtype: torch.dtype, has_up_bias: bool = True
) -> BottleneckWeights:
    g = torch.Generator().manual_seed(width)
    down = AffineWeights(random_of(g, dtype, width, hidden), random_of(g, dtype, width))
    up = AffineWeights(random_of(g, dtype, hidden, width), random_of(g, dtype, hidden) if has_up_bias else None)
    norm = AffineWeights(random_of(g, dtype, hidden), random_of(g, dtype, hidden)) if style.ln_before else None
    return BottleneckWeights(style, ACT2FN[style.activation], down, up, norm, None, None)


def mixed(mix: str, size: int, num_adapters: int) -> list[tuple[int, int, int]]:
    """Adapter (0: none), first and past-the-end token of `size` samples."""
    rng = random.Random(size)
    choices = {
        "identical": lambda i: 1,
        "distinct": lambda i: i % num_adapters + 1,
        "uniform": lambda i: rng.randint(0, num_adapters),
        "zipf": lambda i: rng.choices(range(num_adapters + 1), [1 / (k + 1) for k in range(num_adapters + 1)])[0],
        "skewed": lambda i: 1 if i else 2,
    }
    adapters = sorted(choices[mix](i) for i in range(size))
    rng.shuffle(adapters)
    edges = [0, *itertools.accumulate(rng.choice([1, 5, 16, 37]) for _ in adapters)]
    return list(zip(adapters, edges, edges[1:], strict=False))


def runs_of(samples: list[tuple[int, int, int]], bank: dict[int, BottleneckWeights]) -> SitePlan:
    """Every sample a run of its own."""
    return [
        Run(bank[a].style, start, end, (Segment(start, end, bank[a], ((start, end),)),))
        for a, start, end in samples
        if a
    ]


def check_site(plan: SitePlan, num_tokens: int, hidden: int, dtype: torch.dtype, norm: nn.Module, closes: bool) -> None:
    g = torch.Generator().manual_seed(num_tokens)
    h, t = torch.randn(2, num_tokens, hidden, generator=g).to(DEVICE, dtype)
    with torch.inference_mode():
        got = backend("triton").site(h.clone(), t, norm, plan, closes)
        want = reference.site(h.clone(), t, norm, plan, closes)
    assert got.dtype is dtype
    torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def norm_of(hidden: int, dtype: torch.dtype, bias: bool = True) -> nn.LayerNorm:
    norm = nn.LayerNorm(hidden, eps=1e-12, bias=bias).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.uniform_(0.5, 1.5)
    return norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("mix", MIXES)
def test_a_site_of_any_mix_equals_the_reference(mix: str, size: int, dtype: torch.dtype) -> None:
    reads = itertools.cycle(["normed", "hidden", "residual"])
    bank = {
        i + 1: bottleneck_of(style_of(activation, next(reads)), width, 32, dtype)
        for i, (activation, width) in enumerate(zip(ACTIVATIONS, WIDTHS * 2, strict=True))
    }
    samples = mixed(mix, size, len(bank))
    check_site(runs_of(samples, bank), samples[-1][2], 32, dtype, norm_of(32, dtype), True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("hidden", [20, 384, 768])
def test_no_size_has_to_be_a_power_of_two(hidden: int, width: int, dtype: torch.dtype) -> None:
    bank = {1: bottleneck_of(style_of("gelu"), width, hidden, dtype)}
    check_site(runs_of([(1, 2, 40)], bank), 41, hidden, dtype, norm_of(hidden, dtype), True)


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("norm", [nn.Identity(), norm_of(32, torch.float32), norm_of(32, torch.float32, bias=False)])
def test_every_end_of_a_sub_layer_equals_the_reference(norm: nn.Module, closes: bool) -> None:
    bank = {1: bottleneck_of(style_of(), 24, 32, torch.float32, has_up_bias=False)}
    check_site(runs_of([(1, 3, 20)], bank), 25, 32, torch.float32, norm, closes)
    check_site([], 25, 32, torch.float32, norm, closes)


@pytest.mark.parametrize("style", [style_of("mish"), style_of(ln_before=True)])
def test_what_the_kernel_cannot_do_is_left_to_the_reference(style: BottleneckStyle) -> None:
    bank = {1: bottleneck_of(style_of(), 3, 32, torch.float32), 2: bottleneck_of(style, 24, 32, torch.float32)}
    check_site(
        runs_of([(1, 0, 5), (2, 5, 30), (1, 31, 33)], bank), 40, 32, torch.float32, norm_of(32, torch.float32), True
    )


def test_rows_wider_than_a_program_holds_are_left_to_the_reference() -> None:
    bank = {1: bottleneck_of(style_of(), 3, 2056, torch.float32)}
    check_site(runs_of([(1, 0, 5)], bank), 6, 2056, torch.float32, norm_of(2056, torch.float32), True)


def delta_of(kind: str, rank: int, size_in: int, size_out: int, dtype: torch.dtype) -> DeltaWeights:
    g = torch.Generator().manual_seed(rank)
    channel = 1 + random_of(g, dtype, size_out) if kind in ("dora", "scale") else None
    if kind == "scale":
        return DeltaWeights(None, None, channel, None, True)
    gate = AffineWeights(random_of(g, dtype, 1, size_in), random_of(g, dtype, 1)) if kind == "gated" else None
    down, up = random_of(g, dtype, rank, size_in), random_of(g, dtype, size_out, rank)
    return DeltaWeights(down, up, channel, gate, False)


def check_delta(groups: list[DeltaGroup], num_tokens: int, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(num_tokens)
    x, y = (torch.randn(num_tokens, size, generator=g).to(DEVICE, dtype) for size in sizes)
    with torch.inference_mode():
        got = backend("triton").projection(y.clone(), x, groups)
        want = reference.projection(y.clone(), x, groups)
    torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def groups_of(samples: list[tuple[int, int, int]], bank: dict[int, DeltaWeights]) -> list[DeltaGroup]:
    return [DeltaGroup(start, end, Leaf(a), ((start, end),), {a: bank[a]}) for a, start, end in samples if a]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("mix", MIXES)
def test_deltas_of_any_mix_equal_the_reference(mix: str, size: int, dtype: torch.dtype) -> None:
    kinds = ("lora", "dora", "scale", "gated") * 2
    bank = {
        i + 1: delta_of(kind, rank, 32, 48, dtype)
        for i, (kind, rank) in enumerate(zip(kinds, (1, 3, 1, 8, 24, 64, 1, 3), strict=True))
    }
    samples = mixed(mix, size, len(bank))
    check_delta(groups_of(samples, bank), samples[-1][2], (32, 48), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(384, 1536), (768, 768), (3072, 768)])
def test_deltas_of_wide_projections_equal_the_reference(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    bank = {i: delta_of(kind, rank, *sizes, dtype) for i, kind, rank in ((1, "lora", 8), (2, "dora", 24))}
    check_delta(groups_of([(1, 0, 17), (2, 19, 30)], bank), 33, sizes, dtype)


def test_compositions_of_deltas_stand_beside_simple_ones() -> None:
    bank = {i: delta_of("lora", rank, 32, 32, torch.float32) for i, rank in ((1, 3), (2, 8))}
    stack = DeltaGroup(4, 9, Stack((Leaf(1), Leaf(2))), ((4, 9),), bank)
    average = DeltaGroup(9, 12, Average((Leaf(1), Leaf(2)), (0.3, 0.7)), ((9, 12),), bank)
    check_delta([*groups_of([(1, 0, 4)], bank), stack, average], 13, (32, 32), torch.float32)


def test_gradients_pass_through() -> None:
    bank = {1: bottleneck_of(style_of(), 3, 32, torch.float32)}
    h, t = torch.randn(2, 5, 32, device=DEVICE)
    h.requires_grad_()
    out = backend("triton").site(h * 1, t, norm_of(32, torch.float32), runs_of([(1, 1, 4)], bank), True)
    out.square().sum().backward()
    assert h.grad is not None and h.grad.abs().sum() > 0


def test_without_interpreter_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(InvalidInput, match="needs a CUDA device, not cpu"):
        backend("triton", torch.device("cpu"))


RECORDED = (
    *("bert/" + name for name in ("base", "seq_bn", "double_seq_bn", "par_bn", "adapterplus", "bn_acts_prelu")),
    *("bert/" + name for name in ("lora_all", "lora_gated", "ia3_all", "ia3_gated", "dora", "mtl_lora", "vera")),
    *("bert/" + name for name in ("prefix_tuning", "prompt_tuning", "seq_bn_inv", "loreft", "noreft", "mam")),
    *("bert/" + name for name in ("fuse_dynamic", "stack_three", "stack_lora_lora", "stack_seq_par", "batchsplit")),
    *("modernbert/" + name for name in ("base", "seq_bn", "double_seq_bn", "par_bn", "lora_all", "batchsplit")),
    *("debertav2/" + name for name in ("seq_bn", "par_bn", "lora_all")),
)


@pytest.mark.skipif(not CONFORMANCE.exists(), reason="no recorded cases here")
@pytest.mark.parametrize("mixed", [False, True])
def test_recorded_cases_pass(tmp_path: Path, mixed: bool) -> None:
    for place in CONFORMANCE.iterdir():
        if place.name != "manifest.json":
            (tmp_path / place.name).symlink_to(place.resolve())
    manifest = json.loads((CONFORMANCE / "manifest.json").read_text())
    manifest["cases"] = [case for case in manifest["cases"] if case["id"] in RECORDED]
    assert len(manifest["cases"]) == len(RECORDED)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    outcomes = check(tmp_path, ModelConfig(device=DEVICE, backend="triton", num_threads=1), mixed=mixed)
    assert [(o.case["id"], o.reason, o.error) for o in outcomes if o.is_failed or o.is_unsupported] == []
