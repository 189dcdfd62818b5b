"""Launches that are prepared for a whole pass: at every place the same answers as the plain plan, in one upload."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_joined import delta_of
from torch import Tensor, nn
from transformers.activations import ACT2FN

from server.composition import Average, Leaf, Node, Stack
from server.model import upload as uploading
from server.model.kernels import backend, reference
from server.model.launches import LaunchedDeltas, LaunchedSite
from server.model.routing import Route, RoutingPlan
from server.model.sites import JOINED
from server.model.upload import upload
from server.model.weights import AffineWeights, BottleneckWeights, SlotWeights
from server.primitives import BottleneckStyle, Projection, Residual, SiteKind

triton = pytest.importorskip("triton", reason="triton is not installed")
if not triton.knobs.runtime.interpret:
    pytest.skip("these tests run in the interpreter", allow_module_level=True)

HIDDEN, LAYERS = 32, 2
CPU = torch.device("cpu")
KINDS = ("lora", "dora", "scale", "gated", "biased")


def bottleneck_of(activation: str, width: int, seed: int) -> BottleneckWeights:
    g = torch.Generator().manual_seed(seed)

    def random_of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) / shape[-1] ** 0.5

    style = BottleneckStyle(activation, seed % 3 == 1, seed % 3 == 0, True, Residual.INPUT, False, False, False, False)
    down, up = (AffineWeights(random_of(*s), random_of(s[0])) for s in ((width, HIDDEN), (HIDDEN, width)))
    return BottleneckWeights(style, ACT2FN[activation], down, up, None, None, None)


def slot_of(number: int, scales_input: bool = False) -> SlotWeights:
    """Something at most places; `mish` and gates are not for the kernels."""
    activation = ("relu", "gelu", "mish", "silu")[number % 4]
    sites = {
        (layer, kind): bottleneck_of(activation, (1, 4, 24)[number % 3], 10 * number + layer)
        for layer in range(LAYERS)
        for kind in SiteKind
        if (number + layer + list(SiteKind).index(kind)) % 5
    }
    deltas = {
        (layer, projection): delta_of(KINDS[(number + i) % 5], 10 * number + i)
        for layer in range(LAYERS)
        for i, projection in enumerate(JOINED)
        if (number + layer + i) % 3
    }
    if scales_input:
        deltas = {at: replace(delta, input_scale=torch.full((HIDDEN,), 2.0)) for at, delta in deltas.items()}
    return SlotWeights(sites, deltas, {}, {}, {}, None, None, (), 0)


BANK = {number: slot_of(number) for number in range(1, 8)}
NODES: list[Node | None] = [
    *(Leaf(1), Leaf(2), None, Leaf(3)),
    *(Stack((Leaf(4), Leaf(5))), Average((Leaf(1), Leaf(7)), (0.3, 0.7)), Leaf(6), None),
]


def plan_of(bank: dict[int, SlotWeights] = BANK) -> tuple[RoutingPlan, int]:
    routes = [Route(node, frozenset({1}) if i == 1 else frozenset()) for i, node in enumerate(NODES)]
    edges = np.cumsum([0, 3, 1, 20, 40, 5, 7, 16, 2]).tolist()
    return RoutingPlan(bank, routes, list(zip(edges, edges[1:], strict=False))), edges[-1]


def launched(plan: RoutingPlan, num_rows: int) -> object:
    prepared = backend("triton").prepare(plan, num_rows, LAYERS, torch.float32)
    assert prepared is not None
    return prepared.on(upload(prepared.arrays, CPU))


@pytest.mark.parametrize("kind", list(SiteKind))
@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_site_equals_the_reference(layer: int, kind: SiteKind) -> None:
    plan, num_rows = plan_of()
    torch.manual_seed(0)
    h, t, norm = torch.randn(num_rows, HIDDEN), torch.randn(num_rows, HIDDEN), nn.LayerNorm(HIDDEN)
    with torch.inference_mode():
        site = launched(plan, num_rows).site(layer, kind)
        assert isinstance(site, LaunchedSite) and bool(site) == bool(plan.site(layer, kind))
        got = backend("triton").site(h.clone(), t, norm, site)
        want = reference.site(h.clone(), t, norm, plan.site(layer, kind))
    torch.testing.assert_close(got, want, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("together", [JOINED, JOINED[:1], JOINED[1:2], JOINED[1:], (Projection.OUTPUT,)])
def test_every_group_of_projections_equals_the_reference(layer: int, together: tuple[Projection, ...]) -> None:
    plan, num_rows = plan_of()
    torch.manual_seed(0)
    y, x = torch.randn(num_rows, HIDDEN * len(together)), torch.randn(num_rows, HIDDEN)
    with torch.inference_mode():
        launches = launched(plan, num_rows)
        parts = [launches.deltas(layer, projection) for projection in together]
        got = backend("triton").projections(y.clone(), x, parts)
        want = reference.projections(y.clone(), x, [plan.projection(layer, projection) for projection in together])
    torch.testing.assert_close(got, want, atol=5e-5, rtol=5e-5)


def test_places_without_adapters_are_empty() -> None:
    plan, num_rows = plan_of({number: SlotWeights({}, {}, {}, {}, {}, None, None, (), 0) for number in BANK})
    launches = launched(plan, num_rows)
    assert not launches.site(0, SiteKind.OUTPUT) and launches.deltas(0, Projection.KEY) == ()


def test_a_scaled_input_is_left_to_the_plain_plan() -> None:
    plan, num_rows = plan_of({number: slot_of(number, number == 1) for number in BANK})
    launches = launched(plan, num_rows)
    found = {projection: launches.deltas(1, projection) for projection in JOINED}
    assert any(isinstance(groups, list) for groups in found.values())
    for projection, groups in found.items():
        scaled = [w.input_scale for g in plan.projection(1, projection) for w in g.weights.values()]
        assert isinstance(groups, LaunchedDeltas) == all(scale is None for scale in scaled)


def test_rows_of_another_number_or_dtype_take_the_plain_plan() -> None:
    plan, num_rows = plan_of()
    site = launched(plan, num_rows + 5).site(0, SiteKind.OUTPUT)
    h, t, norm = torch.randn(num_rows, HIDDEN), torch.randn(num_rows, HIDDEN), nn.LayerNorm(HIDDEN)
    with torch.inference_mode():
        got = backend("triton").site(h.clone(), t, norm, site)
        want = reference.site(h.clone(), t, norm, plan.site(0, SiteKind.OUTPUT))
    torch.testing.assert_close(got, want, atol=5e-5, rtol=5e-5)


def test_a_slot_that_is_written_anew_is_read_anew() -> None:
    bank = dict(BANK)
    before = backend("triton").prepare(plan_of(bank)[0], 94, LAYERS, torch.float32)
    bank[1] = slot_of(1)
    after = backend("triton").prepare(plan_of(bank)[0], 94, LAYERS, torch.float32)
    assert before is not None and after is not None
    assert before.arrays[1][0, 1, 0].tolist() != after.arrays[1][0, 1, 0].tolist()
    assert before.arrays[1][0, 1, 1].tolist() == after.arrays[1][0, 1, 1].tolist()


def test_tables_keep_no_slot_alive() -> None:
    bank = {**BANK, 1: slot_of(1)}
    gone = weakref.ref(bank[1])
    prepared = backend("triton").prepare(plan_of(bank)[0], 94, LAYERS, torch.float32)
    del bank, prepared
    gc.collect()
    assert gone() is None


def test_pieces_of_an_upload_are_what_went_in() -> None:
    arrays = [
        np.arange(5),
        np.arange(3, dtype=np.int32),
        np.zeros((0, 2), np.int64),
        np.arange(12).reshape(3, 4)[:, 1:],
    ]
    into = torch.empty(1024, dtype=torch.uint8)
    for pieces in (upload(arrays, CPU), upload(arrays, CPU, into)):
        for piece, array in zip(pieces, arrays, strict=True):
            np.testing.assert_array_equal(piece.numpy(), array)
            assert piece.data_ptr() % uploading.PIECE_BYTES == 0
    assert pieces[0].data_ptr() == into.data_ptr()
