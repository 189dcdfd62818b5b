"""Prefix, prompt, ReFT, PHM, coupling and fusion against plain formulas on the stored tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lowered import lowered, lowered_from
from make_adapters import METHOD_CONFIGS, SEPARATE_CONFIGS, RandomWeights, random_checkpoint, random_fusion
from torch.nn.functional import linear
from torch.nn.utils.parametrizations import orthogonal

from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.lowering import lower
from server.core import BaseInfo
from server.errors import MalformedCheckpoint, UnsupportedConfig, WrongBase
from server.primitives import SiteKind

STORE = "prefix_tuning.prefix_tunings.self_prefix"
REFT = "encoder.layer.1.reft_layer.refts.units"


def changed(checkpoint: Checkpoint, **tensors: Any) -> Checkpoint:
    kept = {**checkpoint.tensors, **tensors}
    return dataclasses.replace(checkpoint, tensors={k: v for k, v in kept.items() if v is not None})


def test_flat_prefix_is_cut_into_the_layers_that_carry_it(base: BaseInfo) -> None:
    adapter = lowered(base, "prefix_tuning_flat[prefix_length=4]", leave_out=[1])
    store = adapter[f"{STORE}.control_trans"].view(4, 2, 2, base.num_heads, -1)
    assert [*adapter.spec.prefixes] == [0, 2]
    for place, prefix in enumerate(adapter.spec.prefixes.values()):
        assert torch.equal(adapter.take(prefix.keys).view(4, base.num_heads, -1), store[:, place, 0])
        assert torch.equal(adapter.take(prefix.values).view(4, base.num_heads, -1), store[:, place, 1])


def test_prefix_network_is_evaluated(base: BaseInfo) -> None:
    adapter = lowered(base, "prefix_tuning[prefix_length=4,bottleneck_size=5]")
    x = linear(adapter[f"{STORE}.wte.weight"], *(adapter[f"{STORE}.control_trans.0.{k}"] for k in ("weight", "bias")))
    x = linear(x.tanh(), *(adapter[f"{STORE}.control_trans.2.{kind}"] for kind in ("weight", "bias")))
    x = x.view(4, 3, 2, base.hidden_size)
    for layer, prefix in adapter.spec.prefixes.items():
        torch.testing.assert_close(adapter.take(prefix.keys), x[:, layer, 0])
        torch.testing.assert_close(adapter.take(prefix.values), x[:, layer, 1])


@pytest.mark.parametrize(("shared", "rows"), [(True, 1), (False, 2)])
def test_prefix_gate_has_a_row_for_all_or_for_each(base: BaseInfo, shared: bool, rows: int) -> None:
    config = f"prefix_tuning_flat[prefix_length=4,use_gating=true,shared_gating={shared}]"
    gate = lowered(base, config).spec.prefixes[2].gate
    assert gate is not None and gate.weight.shape == (rows, base.hidden_size)


@pytest.mark.parametrize(("combine", "is_after_first"), [("prefix", False), ("prefix_after_bos", True)])
def test_prompt_is_as_wide_as_embeddings(base: BaseInfo, combine: str, is_after_first: bool) -> None:
    base = dataclasses.replace(base, embedding_size=16)
    prompt = lowered(base, f"prompt_tuning[combine={combine}]").spec.prompt
    assert prompt and prompt.is_after_first is is_after_first and prompt.embeddings.shape == (10, 16)


@pytest.mark.parametrize("config", ["prefix_tuning", "prompt_tuning"])
def test_family_without_prefixes_refuses_them_by_name(base: BaseInfo, config: str) -> None:
    checkpoint = dataclasses.replace(random_checkpoint(base, config=config), model_type="modernbert")
    with pytest.raises(UnsupportedConfig, match=config):
        lower(checkpoint, dataclasses.replace(base, model_type="modernbert"))


@pytest.mark.parametrize("rank", [1, 3, 31, 32])
def test_orthogonal_projection_is_what_torch_makes_of_it(base: BaseInfo, rank: int) -> None:
    module = orthogonal(torch.nn.Linear(32, rank, bias=False))
    module.weight = torch.nn.init.orthogonal_(torch.empty(rank, 32))
    parts: Any = module.parametrizations.weight
    with torch.no_grad():
        parts.original += 0.1 * torch.randn(rank, 32).tril(-1) if rank == 32 else torch.randn(32, rank).tril(-1).t()
    tensors = {"original": parts.original, "0.base": parts[0].base}
    stored = {f"{REFT}.0.projection.parametrizations.weight.{name}": value for name, value in tensors.items()}
    adapter = lowered_from(changed(random_checkpoint(base, config=f"loreft[r={rank}]"), **stored), base)
    first = adapter.spec.edits[1].first
    assert first is not None
    torch.testing.assert_close(adapter.take(first.projection), module.weight, atol=1e-5, rtol=1e-5)


def test_units_of_reft_are_first_and_last(base: BaseInfo) -> None:
    adapter = lowered(base, "noreft[r=2,prefix_positions=2,suffix_positions=3,non_linearity=tanh]")
    edits = adapter.spec.edits[1]
    assert edits.first and edits.last and (edits.num_first, edits.num_last, edits.activation) == (2, 3, "tanh")
    for unit, edit in enumerate((edits.first, edits.last)):
        assert torch.equal(adapter.take(edit.projection), adapter[f"{REFT}.{unit}.projection.weight"])
        assert torch.equal(adapter.take(edit.source.weight), adapter[f"{REFT}.{unit}.learned_source.weight"])


def test_tied_units_are_one(base: BaseInfo) -> None:
    edits = lowered(base, "noreft[tied_weights=true,suffix_positions=1]").spec.edits[0]
    assert edits.first is not None and edits.first == edits.last


def test_edits_are_where_there_are_positions_and_layers(base: BaseInfo) -> None:
    spec = lowered(base, {"architecture": "reft", "layers": [0, 2], "orthogonality": False, "r": 2}).spec
    assert [*spec.edits] == [0, 2] and all(edits.first and not edits.last for edits in spec.edits.values())
    assert not lowered(base, "noreft[output_reft=false]").spec.edits
    with pytest.raises(WrongBase):
        lower(
            random_checkpoint(base, config={"architecture": "reft", "layers": [2], "orthogonality": False}),
            shallow(base),
        )


def shallow(base: BaseInfo) -> BaseInfo:
    return dataclasses.replace(base, num_layers=2)


def test_only_an_explicit_direft_does_not_subtract(base: BaseInfo) -> None:
    assert lowered(base, "direft").spec.edits[0].subtracts is False
    assert lowered(base, "noreft").spec.edits[0].subtracts is True


PHM = [
    {},
    {"phm_rank": 3},
    {"shared_phm_rule": False},
    {"factorized_phm_rule": True},
    {"factorized_phm_rule": True, "shared_phm_rule": False},
    {"factorized_phm_W": False},
    {"shared_W_phm": True},
    {"phm_bias": False},
    {"ln_before": True},
]


@pytest.mark.parametrize("options", PHM, ids=str)
def test_hypercomplex_projections_are_multiplied_out(base: BaseInfo, options: Mapping[str, Any]) -> None:
    config = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu"}
    adapter = lowered(base, {**config, "phm_layer": True, "phm_dim": 4, "scaling": 2.0, **options})
    site = adapter.spec.sites[1, SiteKind.OUTPUT]
    path = "encoder.layer.1.output.adapters"
    ups = (
        (f"{path}.adapter_down.{int('ln_before' in options)}", "down", site.down),
        (f"{path}.adapter_up", "up", site.up),
    )
    for module, side, affine in ups:

        def stored(name: str, module: str = module) -> Any:
            tensors = adapter.checkpoint.tensors
            return tensors.get(f"{module}.{name}", tensors.get(f"shared_parameters.{name}"))

        rules = stored("phm_rule")
        if rules is None:
            rules = torch.stack([a @ b for a, b in zip(stored("phm_rule_left"), stored("phm_rule_right"), strict=True)])
        factors = stored("W")
        if factors is None:
            prefix = f"W_{side}" if options.get("shared_W_phm") else "W"
            factors = torch.stack(
                [a @ b for a, b in zip(stored(f"{prefix}_left"), stored(f"{prefix}_right"), strict=True)]
            )
        matrix = sum(torch.kron(rule, factor) for rule, factor in zip(rules, factors, strict=True))
        x = torch.randn(3, matrix.shape[0])
        expected = x @ matrix + (0 if stored("b") is None else stored("b"))
        expected = expected * (2 if side == "up" else 1)
        torch.testing.assert_close(adapter.linear(affine, x), expected, atol=1e-5, rtol=1e-5)


def test_hypercomplex_adapter_without_what_it_shares_is_malformed(base: BaseInfo) -> None:
    checkpoint = random_checkpoint(base, config="compacter[reduction_factor=4]")
    with pytest.raises(MalformedCheckpoint, match="shared_parameters.phm_rule is missing.*without a head"):
        lower(changed(checkpoint, **{"shared_parameters.phm_rule": None}), base)


@pytest.mark.parametrize("size", [16, 31])
def test_coupling_is_invertible_and_as_wide_as_embeddings(base: BaseInfo, size: int) -> None:
    base = dataclasses.replace(base, embedding_size=size)
    adapter = lowered(base, "seq_bn_inv[inv_adapter_reduction_factor=3]")
    coupling = adapter.spec.coupling
    half = size // 2
    assert coupling is not None and coupling.activation == "relu"
    assert [p.weight.shape for p in coupling.f] == [((size - half) // 3, size - half), (half, (size - half) // 3)]
    assert [p.weight.shape for p in coupling.g] == [(half // 3, half), (size - half, half // 3)]
    assert torch.equal(adapter.take(coupling.g[1].weight), adapter["invertible_adapters.G.2.weight"])


def test_coupling_does_not_care_for_layers_left_out(base: BaseInfo) -> None:
    assert lowered(base, "seq_bn_inv", leave_out=[0, 1, 2]).spec.coupling is not None


def test_glow_is_refused_by_name(base: BaseInfo) -> None:
    checkpoint = random_checkpoint(base, config="seq_bn_inv")
    with pytest.raises(UnsupportedConfig, match="inv_adapter is 'glow'"):
        lower(dataclasses.replace(checkpoint, config={**(checkpoint.config or {}), "inv_adapter": "glow"}), base)


def test_members_of_a_union_go_to_their_own_places(base: BaseInfo) -> None:
    spec = lowered(base, "mam").spec
    assert len(spec.prefixes) == len(spec.sites) == 3 and not spec.projections
    assert all(site.style.is_parallel for site in spec.sites.values())
    spec = lowered(base, "unipelt").spec
    assert len(spec.prefixes) == len(spec.sites) == 3 and len(spec.projections) == 6
    assert all(delta.gate for delta in spec.projections.values())


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("seq_bn|double_seq_bn", "bottleneck site output of layer 0"),
        ("lora[r=2]|ia3", "value projection of layer 0"),
        ("seq_bn_inv|seq_bn_inv[output_adapter=false]", "the invertible block"),
        ("prefix_tuning_flat|prefix_tuning", "the prefix of layer 0"),
        ("loreft|noreft", "edits of layer 0"),
        ("prompt_tuning|prompt_tuning", "prompt"),
    ],
)
def test_two_members_at_one_place_are_refused_naming_it(base: BaseInfo, config: str, place: str) -> None:
    one, two = (random_checkpoint(base, config=part) for part in config.split("|"))
    union = {"architecture": "union", "configs": [one.config, two.config]}
    both = dataclasses.replace(one, config=union, tensors={**two.tensors, **one.tensors})
    with pytest.raises(UnsupportedConfig, match=place):
        lower(both, base)


def test_bottlenecks_of_a_union_may_share_a_layer_but_not_a_site(base: BaseInfo) -> None:
    mh = {"mh_adapter": True, "output_adapter": False, "reduction_factor": 4, "non_linearity": "relu"}
    spec = lowered(
        base, {"architecture": "union", "configs": [mh, {**mh, "mh_adapter": False, "output_adapter": True}]}
    ).spec
    assert len(spec.sites) == 6


def test_modernbert_never_runs_its_norm_after_a_bottleneck(base: BaseInfo) -> None:
    base = dataclasses.replace(base, model_type="modernbert")
    checkpoint = random_checkpoint(base, config="double_seq_bn")
    spec, _ = lower(checkpoint, base)
    assert not any(site.style.original_ln_after for site in spec.sites.values())
    config = {**(checkpoint.config or {}), "original_ln_after": False}
    with pytest.raises(UnsupportedConfig, match="original_ln_after"):
        lower(dataclasses.replace(checkpoint, config=config), base)


def test_layers_of_albert_are_those_of_its_groups(base: BaseInfo) -> None:
    base = dataclasses.replace(base, model_type="albert", num_layers=4, layers_per_group=2)
    checkpoint = random_checkpoint(base, leave_out=[1])
    groups = {key.split(".output_adapters")[0] for key in checkpoint.tensors}
    path = "encoder.albert_layer_groups.{}.albert_layers.{}"
    assert groups == {path.format(0, 0), path.format(1, 0), path.format(1, 1)}
    assert [layer for layer, _ in lower(checkpoint, base)[0].sites] == [0, 2, 3]


@pytest.mark.parametrize("config", ["dynamic", "static", {"query": False, "key": False, "value": False}])
def test_fusion_has_what_its_configuration_says(base: BaseInfo, config: Any) -> None:
    checkpoint = random_fusion(base, ["a", "b"], config=config, kinds=(SiteKind.ATTENTION, SiteKind.OUTPUT))
    adapter = lowered_from(checkpoint, base)
    fusion = adapter.spec.fusion
    assert fusion is not None and fusion.members == ("a", "b") and fusion.temperature == 1.0
    assert fusion.sites.keys() == {(layer, kind) for layer in range(3) for kind in SiteKind}
    site = fusion.sites[1, SiteKind.ATTENTION]
    assert (site.query is not None) is (site.key is not None) is isinstance(config, str)
    assert (site.value is not None) is (config == "dynamic")
    if site.query:
        key = "encoder.layer.1.attention.output.adapter_fusion_layer.query.weight"
        assert torch.equal(adapter.take(site.query.weight), adapter[key])


def test_temperature_of_a_fusion_stays_where_it_starts(base: BaseInfo) -> None:
    fusion = lowered_from(random_fusion(base, ["a", "b"], config={"temperature": True}), base).spec.fusion
    assert fusion is not None and fusion.temperature == 50.0


def test_fusion_that_lacks_a_layer_is_malformed(base: BaseInfo) -> None:
    checkpoint = random_fusion(base, ["a", "b"])
    tensors = {key: value for key, value in checkpoint.tensors.items() if not key.startswith("encoder.layer.1.")}
    with pytest.raises(MalformedCheckpoint, match="layer.1.*missing"):
        lower(dataclasses.replace(checkpoint, tensors=tensors), base)
    with pytest.raises(MalformedCheckpoint, match="no fusion layer"):
        lower(dataclasses.replace(checkpoint, tensors={}), base)


@pytest.mark.parametrize("config", [*METHOD_CONFIGS, *SEPARATE_CONFIGS], ids=str)
def test_gradients_reach_every_tensor_that_answers_depend_on(base: BaseInfo, config: Any) -> None:
    checkpoint = random_checkpoint(base, config=config)
    for parameter in checkpoint.tensors.values():
        parameter.requires_grad_()
    spec, tensors = lower(checkpoint, base, RandomWeights(base))
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    assert flat.numel() == spec.num_elements
    (flat * torch.randn_like(flat)).sum().backward()  # type: ignore[no-untyped-call]
    for key, parameter in checkpoint.tensors.items():
        assert parameter.grad is not None and bool(parameter.grad.any()), key


@pytest.mark.parametrize("config", [*METHOD_CONFIGS, *SEPARATE_CONFIGS], ids=str)
def test_missing_and_unexpected_tensors_are_named(base: BaseInfo, config: Any) -> None:
    checkpoint = random_checkpoint(base, config=config)
    key = sorted(checkpoint.tensors)[len(checkpoint.tensors) // 2]
    with pytest.raises(MalformedCheckpoint, match=f"{key} is missing".replace(".", r"\.")):
        lower(changed(checkpoint, **{key: None}), base, RandomWeights(base))
    with pytest.raises(MalformedCheckpoint, match="extra"):
        lower(changed(checkpoint, extra=torch.ones(2)), base, RandomWeights(base))


@pytest.mark.parametrize("config", ["lora", "noreft", "prefix_tuning_flat[use_gating=true]", "vera"])
def test_deeper_and_shallower_bases_are_told(base: BaseInfo, config: str) -> None:
    for depth in (2, 4):
        with pytest.raises(WrongBase, match="num_layers"):
            lower(random_checkpoint(base, config=config), dataclasses.replace(base, num_layers=depth))
