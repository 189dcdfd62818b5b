from __future__ import annotations

from typing import Any

import pytest

from adapters_cache.formats.configs import canonical_config
from adapters_cache.formats.named import ALIASES, NAMED, UNIONS
from adapters_cache.formats.schemas import SCHEMAS
from server.errors import UnsupportedConfig

MODERN = {"version": "adapters.1.3.0"}
REQUIRED = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu"}


def read(config: object, *, has_invertible: bool = False, **envelope: object) -> dict[str, Any]:
    return canonical_config({**MODERN, **envelope, "config": config}, has_invertible=has_invertible)


def read_old(config: object, *, has_invertible: bool = False, **envelope: object) -> dict[str, Any]:
    return canonical_config({**envelope, "config": config}, has_invertible=has_invertible)


@pytest.mark.parametrize("name", [*NAMED, *ALIASES])
def test_named_configuration_has_every_field(name: str) -> None:
    config = read(name, has_invertible=True)
    assert config.keys() == SCHEMAS[config.get("architecture")].fields.keys()


def test_old_name_means_the_same_as_the_new_one() -> None:
    assert all(read(old) == read(new) for old, new in ALIASES.items())


def test_overrides_in_brackets_are_applied() -> None:
    config = read("seq_bn[reduction_factor=0.5, non_linearity=gelu,ln_after=true,scaling=learned]")
    assert (config["reduction_factor"], config["non_linearity"]) == (0.5, "gelu")
    assert config["ln_after"] is True and config["scaling"] == "learned"


def test_missing_fields_take_the_defaults_of_the_format() -> None:
    config = read(REQUIRED)
    assert config["original_ln_after"] is True and config["original_ln_before"] is False
    assert config["residual_before_ln"] is True and config["scaling"] == 1.0 and config["leave_out"] == []


@pytest.mark.parametrize("field", REQUIRED)
def test_missing_field_without_default_is_named(field: str) -> None:
    with pytest.raises(UnsupportedConfig, match=field):
        read({name: value for name, value in REQUIRED.items() if name != field})


def test_unknown_field_is_refused_with_its_value() -> None:
    with pytest.raises(UnsupportedConfig, match="config.frobnicate is 7"):
        read({**REQUIRED, "frobnicate": 7})


def test_unknown_field_of_the_first_years_is_dropped() -> None:
    assert read_old({**REQUIRED, "frobnicate": 7}) == read_old(REQUIRED)


def test_training_fields_and_leftovers_are_ignored() -> None:
    leftovers = {"attention_type": "x", "new_attention_norm": False, "config_id": "y", "stochastic_depth": 0.1}
    assert read({**REQUIRED, **leftovers, "architecture": None, "dropout": 0.1}) == read(REQUIRED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mh_adapter", 1),
        ("mh_adapter", "yes"),
        ("reduction_factor", 0),
        ("reduction_factor", -2),
        ("reduction_factor", True),
        ("reduction_factor", "16"),
        ("reduction_factor", {"one": 2}),
        ("reduction_factor", {"1": 0}),
        ("reduction_factor", [2]),
        ("reduction_factor", 10**400),
        ("non_linearity", "softmax"),
        ("non_linearity", ["relu"]),
        ("non_linearity", None),
        ("scaling", "unlearned"),
        ("scaling", True),
        ("scaling", None),
        ("scaling", [1.0]),
        ("residual_before_ln", "before"),
        ("residual_before_ln", 1),
        ("leave_out", [0.5]),
        ("leave_out", [-1]),
        ("leave_out", "0"),
        ("inv_adapter", "real_nvp"),
        ("inv_adapter", {}),
        ("phm_dim", 0),
        ("architecture", ["lora"]),
    ],
)
def test_wrong_value_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=f"config.{field}"):
        read({**REQUIRED, field: value})


@pytest.mark.parametrize("architecture", ["adaptformer", "union "])
def test_other_method_is_refused_by_name(architecture: str) -> None:
    with pytest.raises(UnsupportedConfig, match=architecture):
        read({"architecture": architecture})


@pytest.mark.parametrize("text", ["prefix", "mam[r=3]", "seq_bn|", "", "seq_bn[", "nothing[]"])
def test_string_that_names_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedConfig, match="config"):
        read(text)


def test_union_has_its_members_in_full() -> None:
    union = read("seq_bn[reduction_factor=8]|lora[r=4]")
    assert union == {"architecture": "union", "configs": [read("seq_bn[reduction_factor=8]"), read("lora[r=4]")]}
    for name, members in UNIONS.items():
        configs = read(name)["configs"]
        assert [member.get("architecture") for member in configs] == [m.get("architecture") for m in members]
    assert [member["use_gating"] for member in read("unipelt")["configs"]] == [True] * 3


@pytest.mark.parametrize("members", [None, [], "lora", [3], [{"architecture": "union", "configs": []}]])
def test_union_of_anything_else_is_refused(members: object) -> None:
    with pytest.raises(UnsupportedConfig, match="config"):
        read({"architecture": "union", "configs": members})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_matrices", "qv"),
        ("attn_matrices", ["o"]),
        ("r", 0),
        ("alpha", None),
        ("composition_mode", "multiply"),
        ("vera_d", "0.1"),
        ("leave_out", None),
    ],
)
def test_wrong_value_of_lora_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=f"config.{field}"):
        read({"architecture": "lora", field: value})


def test_whole_number_does_not_select_vera() -> None:
    config = read({"architecture": "lora", "vera_d": 1, "vera_b": 0.0})
    assert config["vera_d"] is None and config["vera_b"] == 0.0


def test_attention_matrices_have_one_order() -> None:
    assert read("ia3") == read({**read("ia3"), "attn_matrices": ["v", "k"]})


@pytest.mark.parametrize(
    ("version", "alpha"), [("adapters.0.2.1", 4), ("adapters.1.0.0", 4), ("adapters.1.1.0", 16), ("3.1.0", 16)]
)
def test_alpha_that_was_never_read_is_forgotten(version: str, alpha: int) -> None:
    lora = {"architecture": "lora", "r": 4, "alpha": 16}
    assert read(lora, version=version)["alpha"] == alpha
    union = read({"architecture": "union", "configs": [lora]}, version=version)
    assert union["configs"][0]["alpha"] == 16


@pytest.mark.parametrize("config", [None, 3, ["seq_bn"]])
def test_configuration_that_is_no_object_is_refused(config: object) -> None:
    with pytest.raises(UnsupportedConfig):
        read(config)


@pytest.mark.parametrize(("old", "new"), [("gelu", "gelu_new"), ("gelu_orig", "gelu"), ("relu", "relu")])
def test_gelu_of_files_without_version_is_renamed(old: str, new: str) -> None:
    assert read_old({**REQUIRED, "non_linearity": old})["non_linearity"] == new


def test_gelu_of_files_with_any_version_stays() -> None:
    assert read({**REQUIRED, "non_linearity": "gelu"}, version="3.2.1")["non_linearity"] == "gelu"


def test_nested_invertible_block_is_flattened() -> None:
    nested = {"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2}
    config = read_old({**REQUIRED, "invertible_adapter": nested}, type="text_lang", has_invertible=True)
    assert (config["inv_adapter"], config["inv_adapter_reduction_factor"]) == ("nice", 2)
    assert read_old({**REQUIRED, "invertible_adapter": None})["inv_adapter"] is None


def test_block_that_a_task_adapter_declares_but_does_not_have_is_dropped() -> None:
    config = {**REQUIRED, "inv_adapter": "nice"}
    assert read_old(config, type="text_task")["inv_adapter"] is None
    assert read_old(config, type="text_task", has_invertible=True)["inv_adapter"] == "nice"
    assert read_old(config, type="text_lang")["inv_adapter"] == "nice"


def test_capitals_of_2020_are_lowered() -> None:
    old = {
        "MH_Adapter": True,
        "Output_Adapter": False,
        "reduction_factor": 2,
        "non_linearity": "ReLU",
        "LN_before": True,
    }
    config = read_old(old)
    assert config["mh_adapter"] and not config["output_adapter"] and config["ln_before"]
    assert config["non_linearity"] == "relu"


def test_equal_numbers_are_equal_configurations() -> None:
    assert read({**REQUIRED, "reduction_factor": 16.0, "scaling": 2}) == read({**REQUIRED, "scaling": 2.0})
