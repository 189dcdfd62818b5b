from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import make_base
from hypothesis import given
from hypothesis import strategies as st
from make_adapters import CONFIGS, HEADS, random_checkpoint

from adapters_cache.build import build_adapter
from adapters_cache.flat import ALIGNMENT
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.lower_bottleneck import style_of, width_of
from adapters_cache.lowering import lower
from server.core import BaseInfo
from server.errors import MalformedCheckpoint, UnsupportedConfig, WrongBase
from server.primitives import AdapterSpec, Affine, Residual, SiteKind, Task, TensorSlice


def flat_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def take(flat: torch.Tensor, place: TensorSlice) -> torch.Tensor:
    return flat[place.offset : place.offset + place.num_elements].view(place.shape)


def slices(spec: AdapterSpec) -> list[TensorSlice]:
    affines: list[Affine | None] = []
    found = []
    for site in spec.sites.values():
        affines += [site.down, site.up, site.norm_before, site.norm_after, site.gate]
        found += [site.activation_weight] if site.activation_weight else []
    affines += [layer.dense for layer in spec.head.layers] if spec.head else []
    for affine in filter(None, affines):
        found += [affine.weight, *([affine.bias] if affine.bias else [])]
    return found


def changed(checkpoint: Checkpoint, **tensors: Any) -> Checkpoint:
    kept = {**checkpoint.tensors, **tensors}
    return dataclasses.replace(checkpoint, tensors={k: v for k, v in kept.items() if v is not None})


def configured(checkpoint: Checkpoint, **config: Any) -> Checkpoint:
    return dataclasses.replace(checkpoint, config={**(checkpoint.config or {}), **config})


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_every_tensor_has_its_aligned_place(base: BaseInfo, index: int) -> None:
    checkpoint = random_checkpoint(base, config=CONFIGS[index], head=HEADS[1])
    spec, tensors = lower(checkpoint, base)
    places = sorted(slices(spec), key=lambda place: place.offset)
    assert flat_of(tensors).numel() == spec.num_elements
    assert all(place.offset % ALIGNMENT == 0 for place in places)
    ends = [place.offset + place.num_elements for place in places]
    assert all(end <= later.offset for end, later in zip(ends, places[1:], strict=False))
    assert ends[-1] <= spec.num_elements


def test_weights_lie_where_the_spec_says(base: BaseInfo) -> None:
    checkpoint = random_checkpoint(base, config="double_seq_bn[reduction_factor=5]", head=HEADS[5])
    spec, tensors = lower(checkpoint, base)
    flat = flat_of(tensors)
    assert len(spec.sites) == 6
    for (layer, kind), site in spec.sites.items():
        middle = "attention.output" if kind is SiteKind.ATTENTION else "output"
        path = f"encoder.layer.{layer}.{middle}.adapters"
        assert site.width == 6
        assert torch.equal(take(flat, site.down.weight), checkpoint.tensors[f"{path}.adapter_down.0.weight"])
        assert site.up.bias and torch.equal(take(flat, site.up.bias), checkpoint.tensors[f"{path}.adapter_up.bias"])
    assert spec.head and checkpoint.head
    [layer_] = spec.head.layers
    assert torch.equal(take(flat, layer_.dense.weight), checkpoint.head.tensors["heads.1.weight"])


@pytest.mark.parametrize("scaling", ["2.5", "learned", "channel"])
def test_scaling_is_multiplied_into_the_up_projection(base: BaseInfo, scaling: str) -> None:
    checkpoint = random_checkpoint(base, config=f"seq_bn[scaling={scaling}]")
    spec, tensors = lower(checkpoint, base)
    flat, path = flat_of(tensors), "encoder.layer.1.output.adapters"
    factor = 2.5 if scaling == "2.5" else checkpoint.tensors[f"{path}.scaling"]
    x = torch.randn(2)
    weight, bias = (checkpoint.tensors[f"{path}.adapter_up.{kind}"] for kind in ("weight", "bias"))
    up = spec.sites[1, SiteKind.OUTPUT].up
    assert up.bias
    torch.testing.assert_close(take(flat, up.weight) @ x + take(flat, up.bias), factor * (weight @ x + bias))


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_gradients_reach_every_tensor_of_the_checkpoint(base: BaseInfo, index: int) -> None:
    checkpoint = random_checkpoint(base, config=CONFIGS[index], head=HEADS[1])
    assert checkpoint.head
    parameters = [*checkpoint.tensors.values(), *checkpoint.head.tensors.values()]
    for parameter in parameters:
        parameter.requires_grad_()
    flat_of(lower(checkpoint, base)[1]).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)


def test_half_precision_is_lowered_in_single(base: BaseInfo) -> None:
    checkpoint = random_checkpoint(base, config="par_bn", dtype=torch.float16)
    _, tensors = lower(checkpoint, base)
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_layers_left_out_have_no_site(base: BaseInfo) -> None:
    spec, _ = lower(random_checkpoint(base, leave_out=[0, 2]), base)
    assert list(spec.sites) == [(1, SiteKind.OUTPUT)]


def test_width_follows_the_map_of_reduction_factors(base: BaseInfo) -> None:
    config = {**(random_checkpoint(base).config or {}), "reduction_factor": {"0": 2, "default": 8}}
    spec, _ = lower(random_checkpoint(base, config=config), base)
    assert [site.width for site in spec.sites.values()] == [16, 4, 4]


@pytest.mark.parametrize(("factor", "width"), [(16, 2), (0.5, 64), (64, 1), (3, 10), (1.5, 21)])
def test_width_is_at_least_one(factor: float, width: int) -> None:
    assert width_of(factor, 0, 32) == width


def test_layer_without_reduction_factor_is_refused(base: BaseInfo) -> None:
    with pytest.raises(UnsupportedConfig, match="reduction_factor.*layer 1"):
        lower(configured(random_checkpoint(base), reduction_factor={"0": 16}), base)


def test_fields_without_effect_do_not_make_styles_differ(base: BaseInfo) -> None:
    config = random_checkpoint(base, config="par_bn").config or {}
    noise = {"original_ln_before": True, "residual_before_ln": "post_add", "adapter_residual_before_ln": True}
    assert style_of({**config, **noise, "non_linearity": "swish"}) == style_of({**config, "non_linearity": "silu"})
    sequential = random_checkpoint(base, config="houlsby").config or {}
    assert style_of({**sequential, "residual_before_ln": False}) == style_of(sequential)
    assert style_of({**sequential, "original_ln_before": True, "residual_before_ln": False}).residual is Residual.NORMED


def test_missing_tensor_is_named(base: BaseInfo) -> None:
    key = "encoder.layer.1.output.adapters.adapter_up.bias"
    with pytest.raises(MalformedCheckpoint, match=rf"{key} is missing.*\(32,\)"):
        lower(changed(random_checkpoint(base), **{key: None}), base)


def test_unexpected_tensor_is_named(base: BaseInfo) -> None:
    key = "encoder.layer.1.output.adapters.adapter_up.extra"
    with pytest.raises(MalformedCheckpoint, match=rf"{key} of shape \(7,\)"):
        lower(changed(random_checkpoint(base), **{key: torch.ones(7)}), base)


def test_tensor_of_wrong_shape_is_named_with_both_shapes(base: BaseInfo) -> None:
    key = "encoder.layer.1.output.adapters.adapter_up.weight"
    with pytest.raises(MalformedCheckpoint, match=rf"{key} has shape \(32, 3\).*\(32, 2\)"):
        lower(changed(random_checkpoint(base), **{key: torch.ones(32, 3)}), base)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_head_must_be_exactly_what_it_says(base: BaseInfo, damage: str) -> None:
    checkpoint = random_checkpoint(base, head=HEADS[1])
    assert checkpoint.head
    tensors = dict(checkpoint.head.tensors)
    if damage == "missing":
        del tensors["heads.4.bias"]
    else:
        tensors["heads.4.bias" if damage == "shape" else "heads.7.bias"] = torch.ones(9)
    head = dataclasses.replace(checkpoint.head, tensors=tensors)
    with pytest.raises(MalformedCheckpoint, match="heads.[47].bias"):
        lower(dataclasses.replace(checkpoint, head=head), base)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "roberta"),
        ("hidden_size", 64),
        ("fingerprint", "0" * 64),
        ("num_layers", 2),
        ("num_layers", 4),
    ],
)
def test_wrong_base_names_both_values(base: BaseInfo, field: str, value: Any) -> None:
    checkpoint = random_checkpoint(base)
    with pytest.raises(WrongBase) as caught:
        lower(checkpoint, dataclasses.replace(base, **{field: value}))
    assert str(value) in caught.value.message and str(getattr(base, field)) in caught.value.message
    assert caught.value.metadata["base"] == str(value)


def test_checkpoint_that_does_not_tell_its_base_is_not_held_to_one(base: BaseInfo) -> None:
    lower(dataclasses.replace(random_checkpoint(base), base_fingerprint=""), base)


def test_family_without_known_paths_is_refused(base: BaseInfo) -> None:
    checkpoint = dataclasses.replace(random_checkpoint(base), model_type="gpt2")
    with pytest.raises(UnsupportedConfig, match="gpt2"):
        lower(checkpoint, dataclasses.replace(base, model_type="gpt2"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("inv_adapter", "glow"), ("inv_adapter_reduction_factor", None), ("residual_before_ln", "post_add")],
)
def test_what_cannot_be_lowered_exactly_is_refused_by_field(base: BaseInfo, field: str, value: Any) -> None:
    with pytest.raises(UnsupportedConfig, match=f"{field} is {value!r}"):
        lower(configured(random_checkpoint(base, config="houlsby+inv"), **{field: value}), base)


@pytest.mark.parametrize(
    ("config", "task", "reads_tokens"),
    [
        ({"head_type": "classification", "num_labels": 2}, Task.CLASSIFICATION, False),
        ({"head_type": "classification", "num_labels": 1}, Task.REGRESSION, False),
        ({"head_type": "multilabel_classification", "num_labels": 1}, Task.MULTI_LABEL, False),
        ({"head_type": "tagging"}, Task.TOKEN_CLASSIFICATION, True),
        ({"head_type": "question_answering"}, Task.QUESTION_ANSWERING, True),
    ],
)
def test_head_type_decides_the_task(base: BaseInfo, config: dict[str, Any], task: Task, reads_tokens: bool) -> None:
    spec, _ = lower(random_checkpoint(base, config=None, head=config), base)
    assert spec.task is task and spec.head and spec.head.reads_tokens is reads_tokens and not spec.sites


def test_linears_of_a_head_are_found_with_and_without_activation(base: BaseInfo) -> None:
    for activation in ("tanh", None):
        head = {"head_type": "classification", "layers": 3, "activation_function": activation, "bias": False}
        spec, _ = lower(random_checkpoint(base, head=head), base)
        assert spec.head
        assert [layer.activation for layer in spec.head.layers] == [activation, activation, None]
        assert [layer.dense.bias is None for layer in spec.head.layers] == [False, False, True]


@given(
    hidden=st.integers(1, 24),
    layers=st.integers(1, 4),
    factor=st.sampled_from([0.5, 1, 1.5, 3, 16, 100]),
    mh=st.booleans(),
    flags=st.fixed_dictionaries(
        dict.fromkeys(("ln_before", "ln_after", "use_gating", "is_parallel", "original_ln_before"), st.booleans())
    ),
    scaling=st.sampled_from([1.0, -3.0, "learned", "channel"]),
    activation=st.sampled_from(["relu", "prelu", "gelu_new"]),
    head=st.sampled_from(HEADS),
    data=st.data(),
)
def test_any_bottleneck_of_any_shape_is_lowered_completely(
    hidden: int,
    layers: int,
    factor: float,
    mh: bool,
    flags: dict[str, bool],
    scaling: float | str,
    activation: str,
    head: dict[str, Any] | None,
    data: st.DataObject,
) -> None:
    base = make_base(hidden_size=hidden, num_layers=layers)
    leave_out = data.draw(st.sets(st.integers(0, layers - 1)))
    config = {
        **flags,
        "mh_adapter": mh,
        "output_adapter": True,
        "reduction_factor": factor,
        "non_linearity": activation,
        "scaling": scaling,
    }
    spec, tensors = lower(random_checkpoint(base, config=config, head=head, leave_out=leave_out), base)
    assert flat_of([torch.empty(0), *tensors]).numel() == spec.num_elements
    assert len(spec.sites) == (layers - len(leave_out)) * (1 + mh)


def test_built_adapter_is_in_the_compute_dtype(base: BaseInfo) -> None:
    adapter = build_adapter(random_checkpoint(base), base, torch.bfloat16, name="alias")
    assert adapter.weights.dtype is torch.bfloat16 and adapter.weights.shape == (adapter.spec.num_elements,)
    assert adapter.size_bytes == 2 * adapter.spec.num_elements and adapter.manifest.name == "alias"


def test_weights_beyond_the_compute_dtype_are_malformed(base: BaseInfo) -> None:
    key = "encoder.layer.1.output.adapters.adapter_up.bias"
    checkpoint = changed(random_checkpoint(base), **{key: torch.full((32,), 1e6)})
    build_adapter(checkpoint, base, torch.bfloat16)
    with pytest.raises(MalformedCheckpoint, match=r"float16.*1e\+06"):
        build_adapter(checkpoint, base, torch.float16)
