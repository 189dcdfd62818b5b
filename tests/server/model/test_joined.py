"""Query, key and value in one product: the same answers, parameters and gradients as three."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from server.composition import Leaf, Stack
from server.core import Encoding, TokenInput
from server.model.base import Base
from server.model.dense import product
from server.model.joined import join
from server.model.kernels import BACKENDS, backend, reference
from server.model.routing import Route, RoutingPlan
from server.model.sites import JOINED, Phase
from server.model.weights import AffineWeights, DeltaWeights, SlotWeights

KINDS = ("lora", "dora", "scale", "gated", "biased")


def delta_of(kind: str, seed: int, size_in: int = 32, size_out: int = 32) -> DeltaWeights:
    g = torch.Generator().manual_seed(seed)

    def random_of(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g) / shape[-1] ** 0.5

    rank = (1, 4, 24)[seed % 3]
    if kind == "scale":
        return DeltaWeights(None, None, 1 + random_of(size_out), None, True)
    return DeltaWeights(
        down=random_of(rank, size_in),
        up=random_of(size_out, rank),
        channel=1 + random_of(size_out) if kind == "dora" else None,
        gate=AffineWeights(random_of(1, size_in), random_of(1)) if kind == "gated" else None,
        is_scale=False,
        bias=random_of(size_out) if kind == "biased" else None,
    )


def slot_of(number: int, which: tuple[int, ...], layers: int = 2) -> SlotWeights:
    """An adapter with one delta on each projection that `which` names."""
    projections = {
        (layer, JOINED[part]): delta_of(KINDS[(number + part) % len(KINDS)], 10 * number + part)
        for layer in range(layers)
        for part in which
    }
    return SlotWeights({}, projections, {}, {}, {}, None, None, (), 0)


def linears(bias: bool = True) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(8, 6, bias=bias).requires_grad_(False) for _ in JOINED]


def test_int8_gives_each_part_what_it_gives_alone() -> None:
    modules = linears()
    alone = [product(module.weight.clone(), module.bias.clone(), "int8") for module in modules]
    joined, x = join(modules, "int8"), torch.randn(5, 8)
    assert joined is not None
    with torch.inference_mode():
        torch.testing.assert_close(joined.product(x), torch.cat([own(x) for own in alone], dim=-1))


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_keep_names_values_and_storage(bias: bool) -> None:
    modules = linears(bias)
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    joined = join(modules)
    assert joined is not None and joined.is_intact
    for module, own in zip(modules, before, strict=True):
        assert module.state_dict().keys() == own.keys()
        assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())
        assert module.weight.is_contiguous()
    assert len({module.weight.untyped_storage().data_ptr() for module in modules}) == 1
    x = torch.randn(5, 8)
    torch.testing.assert_close(joined.product(x), torch.cat([module(x) for module in modules], dim=-1))


@pytest.mark.parametrize("change", ["moved", "replaced", "trained"])
def test_moved_replaced_or_trained_parameters_part_them(change: str) -> None:
    modules = linears()
    joined = join(modules)
    assert joined is not None
    if change == "moved":
        nn.ModuleList(modules).to(torch.float64)
    elif change == "replaced":
        modules[2].weight = nn.Parameter(torch.zeros(6, 8), requires_grad=False)
    else:
        modules[1].requires_grad_(True)
    assert not joined.is_intact


def test_unlike_modules_are_not_joined() -> None:
    assert join([nn.Linear(8, 6), nn.Linear(8, 5)]) is None
    assert join([nn.Linear(8, 6), nn.Identity()]) is None
    assert join([nn.Linear(8, 6)]) is None


def test_what_waits_is_for_the_same_input_alone() -> None:
    joined = join(linears())
    assert joined is not None
    x = torch.randn(2, 8)
    joined.keep(x, joined.product(x))
    assert joined.take(1, x.clone()) is None
    assert joined.take(1, x) is not None
    assert joined.take(1, x) is None


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("which", [w for n in (1, 2, 3) for w in itertools.combinations(range(3), n)])
def test_any_subset_of_projections_equals_one_at_a_time(name: str, which: tuple[int, ...]) -> None:
    bank = {slot: slot_of(slot, which) for slot in range(1, 6)}
    spans = [(0, 3), (3, 4), (4, 40), (40, 41), (41, 57), (57, 60)]
    routes = [Route(node) for node in (None, Leaf(1), Leaf(2), Stack((Leaf(1), Leaf(5))), Leaf(3), Leaf(4))]
    plan = RoutingPlan(bank, routes, spans)
    parts = [plan.projection(0, projection) for projection in JOINED]
    torch.manual_seed(0)
    y, x = torch.randn(62, 96), torch.randn(62, 32)
    one_by_one = [reference.projection(y[:, 32 * i : 32 * i + 32], x, groups) for i, groups in enumerate(parts)]
    with torch.inference_mode():
        got = backend(name).projections(y.clone(), x, parts)
    torch.testing.assert_close(got, torch.cat(one_by_one, dim=-1), atol=5e-5, rtol=5e-5)


def forward(base: Base, bank: dict[int, SlotWeights]) -> torch.Tensor:
    ids = [(2, 7, 9, 3)[:n] for n in (2, 3, 4, 4)]
    texts = [Encoding(own, (0,) * len(own), TokenInput(own)) for own in ids]
    packed = base.packer.pack(texts)
    routes = [Route(None), *(Route(Leaf(slot)) for slot in (1, 2, 3))]
    return base.forward([Phase(0, packed, RoutingPlan(bank, routes, packed.spans))])


def test_a_pass_equals_one_that_projects_three_times(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = {1: slot_of(1, (0, 1, 2)), 2: slot_of(2, (0, 2)), 3: slot_of(3, (1,))}
    with torch.inference_mode():
        together = forward(base, bank)
        monkeypatch.setattr(base.stitching, "_joined", lambda *_: None)
        apart = forward(base, bank)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_delta(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = {slot: slot_of(slot, (0, 1, 2)) for slot in (1, 2, 3)}
    deltas = [delta for weights in bank.values() for delta in weights.projections.values()]
    tensors = [x.requires_grad_() for delta in deltas for x in (delta.down, delta.up, delta.channel) if x is not None]
    together = torch.autograd.grad(forward(base, bank).square().sum(), tensors)
    monkeypatch.setattr(base.stitching, "_joined", lambda *_: None)
    apart = torch.autograd.grad(forward(base, bank).square().sum(), tensors)
    assert all(gradient.abs().sum() > 0 for gradient in together)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_the_bases_own_weights_are_still_found_by_name(base: Base) -> None:
    layer = base.family.layers(base.model)[1]
    for projection in JOINED:
        module = layer.get_submodule(base.family.projections[projection])
        assert base.projection_weight(1, projection) is module.weight
        assert base.projection_weight(1, projection).shape == (32, 32)
