"""Adapters against a base, by their headers alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import make_base
from make_adapters import HEADS, OTHER_HEADS, configs_for, make_adapter, make_fusion

from adapters_cache.formats.setups import write_setup
from server.config import CacheConfig
from server.core import BaseInfo
from server.doctor.adapters import adapters, refusal
from server.doctor.finding import Finding, State
from server.errors import AdapterRefused

F32 = torch.float32


@pytest.fixture
def base() -> BaseInfo:
    return make_base(hidden_size=32, num_layers=3)


def why(path: Path, base: BaseInfo, **settings: int) -> AdapterRefused | None:
    return refusal(path, path.name, CacheConfig(**settings), base, F32)  # type: ignore[arg-type]


def found(folder: Path, base: BaseInfo | None) -> list[Finding]:
    return list(adapters(CacheConfig(adapters=(folder,)), base, F32))


@pytest.mark.parametrize("index", range(len(configs_for(make_base()))))
def test_every_method_fits_the_base_it_was_made_for_and_no_wider_one(
    tmp_path: Path, base: BaseInfo, index: int
) -> None:
    make_adapter(tmp_path / "one", base, config=configs_for(base)[index], head=HEADS[index % len(HEADS)])
    assert why(tmp_path / "one", base) is None
    wider = why(tmp_path / "one", replace(base, hidden_size=48))
    assert wider is not None and "hidden_size 32" in wider.message and "hidden_size 48" in wider.message


def test_a_deeper_base_is_told(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "one", base)
    refused = why(tmp_path / "one", replace(base, num_layers=4))
    assert refused is not None and "num_layers 3" in refused.message and "num_layers 4" in refused.message


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_every_head_fits(tmp_path: Path, base: BaseInfo, head: dict[str, object]) -> None:
    make_adapter(tmp_path / "one", base, config=None, head=head)
    assert why(tmp_path / "one", base) is None


def test_weights_of_any_value_are_not_looked_at(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "one", base, config="seq_bn[reduction_factor=4]")
    path = tmp_path / "one" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    assert why(tmp_path / "one", base) is None


def test_pickles_are_read(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "one", base, config="seq_bn[reduction_factor=4]", as_bin=True)
    assert why(tmp_path / "one", base) is None
    (tmp_path / "one" / "pytorch_adapter.bin").write_bytes(b"no pickle")
    assert why(tmp_path / "one", base) is not None


def test_an_adapter_larger_than_a_tier_names_the_tier(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "one", base)
    refused = why(tmp_path / "one", base, device_bytes=100)
    assert refused is not None and "device_bytes is 100" in refused.message


def test_a_folder_of_fitting_adapters_is_one_finding(tmp_path: Path, base: BaseInfo) -> None:
    for name in ("one", "two"):
        make_adapter(tmp_path / name, base)
    make_fusion(tmp_path / "both", base, ["one", "two"])
    (tmp_path / "notes.txt").write_text("no adapter")
    assert found(tmp_path, base) == [Finding("adapters", State.OK, f"{tmp_path}: 3 of 3 adapters fit tiny")]


def test_one_that_does_not_fit_is_named_with_reason_and_remedy(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "good", base)
    make_adapter(tmp_path / "wide", replace(base, hidden_size=48))
    summary, wide = found(tmp_path, base)
    assert (summary.state, wide.state) == (State.WARNING, State.PROBLEM)
    assert "1 of 2" in summary.message and "'wide'" in wide.message and "hidden_size 48" in wide.message
    assert "model.base" in wide.remedy and str(tmp_path / "wide") in wide.remedy


def test_members_of_a_saved_setup_are_looked_at(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "pair" / "one", base)
    make_adapter(tmp_path / "pair" / "two", replace(base, hidden_size=48))
    write_setup(tmp_path / "pair", {"type": "Stack", "children": ["one", "two"]}, None)
    [_, two] = found(tmp_path, base)
    assert "'pair/two'" in two.message


def test_without_a_base_adapters_are_read_for_themselves(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "good", base)
    make_adapter(tmp_path / "bad", base)
    config = json.loads((tmp_path / "bad" / "adapter_config.json").read_text())
    config["config"]["non_linearity"] = "nothing"
    (tmp_path / "bad" / "adapter_config.json").write_text(json.dumps(config))
    _, bad = found(tmp_path, None)
    assert "'bad'" in bad.message and "non_linearity" in bad.message and "docs/adapters.md" in bad.remedy


def test_folders_that_hold_or_are_nothing(tmp_path: Path, base: BaseInfo) -> None:
    [empty], [missing] = found(tmp_path, base), found(tmp_path / "missing", base)
    assert (empty.state, missing.state) == (State.WARNING, State.PROBLEM)
    assert str(tmp_path / "missing") in missing.message and "cache.adapters" in missing.remedy
    [none] = adapters(CacheConfig(), base, F32)
    assert none.state is State.WARNING and "--adapters" in none.remedy


def test_a_name_that_cannot_be_is_told(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "a b", base, name="ab")
    _, strange = found(tmp_path, base)
    assert strange.state is State.WARNING and "'a b'" in strange.message
