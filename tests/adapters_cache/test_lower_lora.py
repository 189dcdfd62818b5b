"""Deltas against the formulas of AdapterHub's documentation, written down on the stored tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from lowered import Lowered, lowered
from make_adapters import RandomWeights, random_checkpoint
from torch import Tensor
from torch.nn.functional import linear

from adapters_cache.lowering import lower
from server.core import BaseInfo
from server.errors import Internal, UnsupportedConfig
from server.primitives import Projection

EVERYWHERE = "intermediate_lora=true,output_lora=true"
PATHS = {
    Projection.QUERY: "attention.self.query",
    Projection.KEY: "attention.self.key",
    Projection.VALUE: "attention.self.value",
    Projection.INTERMEDIATE: "intermediate.dense",
    Projection.OUTPUT: "output.dense",
}


class Site:
    """One projection of layer 1 with an input and its plain output."""

    def __init__(self, base: BaseInfo, adapter: Lowered, projection: Projection = Projection.VALUE) -> None:
        weights = RandomWeights(base)
        self.weight = weights.projection_weight(1, projection)
        self.bias = weights.projection_bias(1, projection)
        self.x = torch.randn(5, self.weight.shape[1])
        self.y = linear(self.x, self.weight, self.bias)
        self._adapter, self._projection = adapter, projection

    def __getitem__(self, name: str) -> Tensor:
        return self._adapter[f"encoder.layer.1.{PATHS[self._projection]}.loras.{name}"]

    def gate(self) -> Tensor:
        return linear(self.x, self["gate.weight"], self["gate.bias"]).sigmoid().mean()

    def check(self, expected: Tensor) -> None:
        found = self._adapter.delta(self._adapter.spec.projections[1, self._projection], self.x, self.y)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def low_rank(site: Site) -> Tensor:
    return site.x @ site["lora_A"].t() @ site["lora_B"].t()


@pytest.mark.parametrize("projection", [Projection.QUERY, *(p for p in PATHS if p.value in ("intermediate", "output"))])
def test_lora_adds_its_scaled_product(base: BaseInfo, projection: Projection) -> None:
    site = Site(base, lowered(base, f"lora[r=4,alpha=6,{EVERYWHERE}]"), projection)
    site.check(site.y + 6 / 4 * low_rank(site))


def test_gate_of_lora_takes_the_place_of_the_scale(base: BaseInfo) -> None:
    site = Site(base, lowered(base, "lora[r=4,alpha=6,use_gating=true]"))
    site.check(site.y + site.gate() * low_rank(site))


def test_ia3_multiplies_the_output_and_its_bias(base: BaseInfo) -> None:
    site = Site(base, lowered(base, "ia3[alpha=3]"))
    site.check(site.y * 3 * site["lora_B"].squeeze(1))


def test_gate_of_ia3_takes_the_place_of_alpha(base: BaseInfo) -> None:
    site = Site(base, lowered(base, "ia3[alpha=3,use_gating=true]"), Projection.INTERMEDIATE)
    site.check(site.y * site.gate() * site["lora_B"].squeeze(1))


def test_dora_divides_by_the_norm_of_the_unscaled_sum(base: BaseInfo) -> None:
    site = Site(base, lowered(base, f"dora[r=4,alpha=6,{EVERYWHERE}]"), Projection.OUTPUT)
    norm = (site.weight + site["lora_B"] @ site["lora_A"]).square().sum(1).sqrt()
    site.check(site["m.weight"].squeeze(1) / norm * (site.y + 6 / 4 * low_rank(site)))


def vera_product(adapter: Lowered, site: Site) -> Tensor:
    a, b = adapter["shared_parameters.lora_A"], adapter["shared_parameters.lora_B"]
    return site["vera_B"] @ b @ site["vera_D"] @ a


def test_vera_multiplies_full_matrices_onto_the_shared_ones(base: BaseInfo) -> None:
    adapter = lowered(base, "vera[r=4,alpha=6]")
    site = Site(base, adapter)
    site.check(site.y + 6 / 4 * linear(site.x, vera_product(adapter, site)))


def test_dvora_is_dora_of_that_product(base: BaseInfo) -> None:
    adapter = lowered(base, "dvora[r=4,alpha=6]")
    site = Site(base, adapter)
    product = vera_product(adapter, site)
    channel = site["m.weight"].squeeze(1) / (site.weight + product).norm(dim=1)
    site.check(channel * (site.y + 6 / 4 * linear(site.x, product)))


def test_mtl_lora_mixes_its_up_projections(base: BaseInfo) -> None:
    site = Site(base, lowered(base, "mtl_lora[r=4,alpha=6,n_up_projection=3,weights_sharpness=0.7]"))
    exponents = (site["weights"] / 0.7).exp()
    middle = (site.x @ site["lora_A"].t()) * site["task_specific.values"]
    expected = site.y.clone()
    for share, up in zip(exponents / exponents.sum(), site["lora_B"], strict=True):
        expected += 6 / 4 * share * middle @ up.t()
    site.check(expected)


@pytest.mark.parametrize("matrices", [["q", "v"], ["k"], ["q", "k", "v"]])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mode", ["add", "scale"])
def test_one_linear_for_three_takes_a_block_for_each(
    base: BaseInfo, matrices: list[str], gated: bool, mode: str
) -> None:
    base = dataclasses.replace(base, model_type="modernbert")
    rank, hidden = (1 if mode == "scale" else 3), base.hidden_size
    config = {"architecture": "lora", "r": rank, "alpha": 6, "attn_matrices": matrices, "use_gating": gated}
    adapter = lowered(base, {**config, "composition_mode": mode})
    delta = adapter.spec.projections[1, Projection.QKV]
    x, y = torch.randn(5, hidden), torch.randn(5, 3 * hidden)
    path, expected = "layers.1.attn.Wqkv.loras", y.clone()
    up = adapter[f"{path}.lora_B"]
    gates = [torch.tensor(6 / rank)] * 3
    if gated:
        gates = [*linear(x, adapter[f"{path}.gate.weight"], adapter[f"{path}.gate.bias"]).sigmoid().mean(0)]
    if mode == "scale":
        expected *= 1 if gated else 6
    for block, name in enumerate(sorted(matrices, key="qkv".index)):
        third, own = (
            slice("qkv".index(name) * hidden, ("qkv".index(name) + 1) * hidden),
            slice(block * hidden, (block + 1) * hidden),
        )
        if mode == "scale":
            expected[:, third] = y[:, third] * gates[block] * up[own, 0]
        else:
            down = adapter[f"{path}.lora_A"][block * rank : (block + 1) * rank]
            expected[:, third] += gates[block] * x @ down.t() @ up[own].t()
    torch.testing.assert_close(adapter.delta(delta, x, y), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", ["dora", "vera", "dvora", "mtl_lora"])
def test_one_linear_for_three_takes_no_other_relative(base: BaseInfo, config: str) -> None:
    checkpoint = dataclasses.replace(random_checkpoint(base, config=config), model_type="modernbert")
    with pytest.raises(UnsupportedConfig, match="config.architecture"):
        lower(checkpoint, dataclasses.replace(base, model_type="modernbert", num_layers=3), RandomWeights(base))


@pytest.mark.parametrize(
    "change",
    [{"r": 2}, {"use_dora": True}, {"vera_d": 0.1}, {"architecture": "mtl_lora"}],
    ids=lambda change: next(iter(change)),
)
def test_scale_that_cannot_be_is_refused(base: BaseInfo, change: dict[str, Any]) -> None:
    checkpoint = random_checkpoint(base, config="ia3")
    config = {**(checkpoint.config or {}), **change}
    with pytest.raises(UnsupportedConfig, match="config"):
        lower(dataclasses.replace(checkpoint, config=config), base)


def test_layers_left_out_have_no_delta(base: BaseInfo) -> None:
    spec = lowered(base, "lora", leave_out=[0, 2]).spec
    assert [*spec.projections] == [(1, Projection.QUERY), (1, Projection.VALUE)]


def test_only_dora_needs_the_weights_of_the_base(base: BaseInfo) -> None:
    lower(random_checkpoint(base, config="vera"), base)
    with pytest.raises(Internal, match="weights"):
        lower(random_checkpoint(base, config="dora"), base)
