"""Every backend's batched bottleneck against a loop that writes the formulas down one sample at a time."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers.activations import ACT2FN

from server.composition import Leaf, Node, Stack
from server.model.kernels import BACKENDS, backend, reference
from server.model.routing import Route, RoutingPlan, SitePlan
from server.model.weights import AffineWeights, BottleneckWeights, SlotWeights
from server.primitives import BottleneckStyle, Residual, SiteKind

HIDDEN = 32
NUM_ADAPTERS = 8
WIDTHS = (1, 2, 3, 8, 24, 64)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
HERE = (0, SiteKind.OUTPUT)

PFEIFFER = BottleneckStyle("relu", False, True, True, Residual.INPUT, False, False, False, False)
HOULSBY = BottleneckStyle("swish", False, False, True, Residual.INPUT, False, False, False, False)
PARALLEL = BottleneckStyle("relu", True, False, True, Residual.INPUT, False, False, False, False)
ADAPTER_PLUS = BottleneckStyle("gelu", False, True, False, Residual.NORMED, False, False, False, False)


def slot_of(sites: dict[tuple[int, SiteKind], BottleneckWeights]) -> SlotWeights:
    return SlotWeights(sites, {}, {}, {}, {}, None, None, (), 0)


def plan_of(bank: dict[int, SlotWeights], slots: list[int | Node], offsets: list[int]) -> SitePlan:
    """What happens at HERE; a slot of 0 is the base alone."""
    routes = [Route(Leaf(slot) if isinstance(slot, int) else slot) if slot else Route(None) for slot in slots]
    return RoutingPlan(bank, routes, list(zip(offsets, offsets[1:], strict=False))).site(*HERE)


def make_weights(style: BottleneckStyle, width: int, seed: int, dtype: torch.dtype) -> SlotWeights:
    g = torch.Generator().manual_seed(seed)

    def affine(*shape: int) -> AffineWeights:
        weight = torch.randn(*shape, generator=g) * 0.3
        return AffineWeights(weight.to(dtype), torch.randn(shape[0], generator=g).to(dtype) * 0.1)

    bottleneck = BottleneckWeights(
        style=style,
        activation=ACT2FN[style.activation],
        down=affine(width, HIDDEN),
        up=affine(HIDDEN, width),
        norm_before=affine(HIDDEN) if style.ln_before else None,
        norm_after=affine(HIDDEN) if style.ln_after else None,
        gate=affine(1, HIDDEN) if style.use_gating else None,
    )
    return slot_of({HERE: bottleneck})


def plainly(h: Tensor, t: Tensor, norm: nn.LayerNorm, weights: BottleneckWeights | None) -> Tensor:
    """One sample, straight from the description of the checkpoint format."""
    if weights is None:
        return norm(h + t)
    s, h0 = weights.style, h
    r = h
    if s.is_parallel:
        h = t
    else:
        if s.original_ln_before:
            h = h + t
            r = h if s.residual is Residual.POST_ADD else r
            h = norm(h)
        r = h if s.residual is Residual.NORMED else r
    z = layer_norm(h, (HIDDEN,), weights.norm_before.weight, weights.norm_before.bias) if s.ln_before else h
    down = z @ weights.down.weight.T + weights.down.bias
    o = ACT2FN[s.activation](down) @ weights.up.weight.T + weights.up.bias
    if s.use_gating:
        o = o * torch.sigmoid(h @ weights.gate.weight.T + weights.gate.bias).mean()
    if s.adapter_residual_before_ln and not s.is_parallel:
        o = o + r
    if s.ln_after:
        o = layer_norm(o, (HIDDEN,), weights.norm_after.weight, weights.norm_after.bias)
    if s.is_parallel:
        o = o + h0
    elif not s.adapter_residual_before_ln:
        o = o + r
    return norm(o + t) if s.original_ln_after else o


def slots_of(mix: str, n: int, rng: random.Random) -> list[int]:
    """Slot of each of n samples; 0 is the base alone."""
    choices = {
        "identical": lambda i: 1,
        "distinct": lambda i: i % NUM_ADAPTERS + 1,
        "uniform": lambda i: rng.randint(0, NUM_ADAPTERS),
        "zipf": lambda i: rng.choices(range(NUM_ADAPTERS + 1), [1 / (k + 1) for k in range(NUM_ADAPTERS + 1)])[0],
        "skewed": lambda i: 1 if i else 2,
    }
    return sorted(choices[mix](i) for i in range(n))


def check(slots: list[int], bank: dict[int, SlotWeights], dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 9) for _ in slots]
    offsets = [0, *itertools.accumulate(lengths)]
    torch.manual_seed(seed)
    h, t = torch.randn(offsets[-1], HIDDEN).to(dtype), torch.randn(offsets[-1], HIDDEN).to(dtype)
    norm = nn.LayerNorm(HIDDEN).to(dtype).requires_grad_(False)
    norm.weight.uniform_(0.5, 1.5)
    want = [
        plainly(h[a:b], t[a:b], norm, bank[slot].sites[HERE] if slot else None)
        for slot, a, b in zip(slots, offsets, offsets[1:], strict=False)
    ]
    plan = plan_of(bank, slots, offsets)
    for name in BACKENDS:
        with torch.inference_mode():
            got = backend(name).site(h.clone(), t, norm, plan)
        torch.testing.assert_close(got, torch.cat(want), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("mix", ["identical", "distinct", "uniform", "zipf", "skewed"])
def test_mixed_styles_and_widths_equal_the_formulas(mix: str, size: int, dtype: torch.dtype) -> None:
    styles = itertools.cycle([PFEIFFER, HOULSBY, PARALLEL, ADAPTER_PLUS])
    widths = itertools.cycle(WIDTHS)
    bank = {i: make_weights(next(styles), next(widths), i, dtype) for i in range(1, NUM_ADAPTERS + 1)}
    check(slots_of(mix, size, random.Random(size)), bank, dtype, seed=size)


@pytest.mark.parametrize("original_ln_before", [True, False])
@pytest.mark.parametrize("original_ln_after", [True, False])
@pytest.mark.parametrize("residual", list(Residual))
@pytest.mark.parametrize("extra_norms", list(itertools.product([True, False], repeat=3)), ids=str)
@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize("use_gating", [True, False])
def test_every_order_of_steps_equals_the_formulas(
    original_ln_before: bool,
    original_ln_after: bool,
    residual: Residual,
    extra_norms: tuple[bool, bool, bool],
    is_parallel: bool,
    use_gating: bool,
) -> None:
    style = BottleneckStyle(
        "tanh", is_parallel, original_ln_before, original_ln_after, residual, *extra_norms, use_gating
    )
    bank = {1: make_weights(style, 5, 1, torch.float32), 2: make_weights(PFEIFFER, 3, 2, torch.float32)}
    check([0, 1, 1, 2, 1], bank, torch.float32, seed=3)


def test_site_without_a_module_is_the_base() -> None:
    norm = nn.LayerNorm(HIDDEN)
    h, t = torch.randn(4, HIDDEN), torch.randn(4, HIDDEN)
    bank = {1: slot_of({})}
    got = reference.site(h.clone(), t, norm, plan_of(bank, [1, 0], [0, 3, 4]))
    assert torch.equal(got, norm(h + t))


def test_second_of_a_stack_takes_the_result_of_the_first() -> None:
    """A stack: what the last bottleneck met decides the closing LayerNorm."""
    bank = {1: make_weights(PFEIFFER, 4, 1, torch.float32), 2: make_weights(HOULSBY, 6, 2, torch.float32)}
    norm = nn.LayerNorm(HIDDEN)
    h, t = torch.randn(5, HIDDEN), torch.randn(5, HIDDEN)
    plan = plan_of(bank, [Stack((Leaf(1), Leaf(2))), 1], [0, 3, 5])
    with torch.inference_mode():
        got = reference.site(h.clone(), t, norm, plan)
        first = bank[1].sites[HERE]
        x = norm(h + t)
        step = h + torch.relu(x @ first.down.weight.T + first.down.bias) @ first.up.weight.T + first.up.bias
        want = torch.cat([plainly(step[:3], t[:3], norm, bank[2].sites[HERE]), norm(step[3:] + t[3:])])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0.0)


def test_gradients_reach_every_weight() -> None:
    weights = make_weights(PFEIFFER, 4, 1, torch.float32)
    bottleneck = weights.sites[HERE]
    leaves = [bottleneck.down.weight, bottleneck.down.bias, bottleneck.up.weight, bottleneck.up.bias]
    for leaf in leaves:
        leaf.requires_grad_()
    h, t = torch.randn(4, HIDDEN), torch.randn(4, HIDDEN)
    plan = plan_of({1: weights}, [1, 1], [0, 2, 4])
    reference.site(h, t, nn.LayerNorm(HIDDEN), plan).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize(("device", "is_installed", "name"), [("cpu", True, "eager"), ("cuda", False, "eager")])
def test_backend_follows_the_device_unless_named(
    device: str, is_installed: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.model.kernels.find_spec", lambda _: is_installed or None)
    assert backend("auto", torch.device(device)) is backend(name)


def test_backend_of_a_gpu_is_triton_where_it_is_installed() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    assert backend("auto", torch.device("cuda")) is backend("triton")
