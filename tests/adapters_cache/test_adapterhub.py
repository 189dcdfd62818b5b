from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from make_adapters import (
    CONFIGS,
    HEADS,
    OTHER_HEADS,
    configs_for,
    make_adapter,
    make_fusion,
    make_variant,
    random_checkpoint,
    random_head,
)
from safetensors.torch import load_file, save_file

from adapters_cache.families import FAMILIES, family_of
from adapters_cache.formats.adapterhub import read_checkpoint, write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.fusions import FUSION_FILES
from adapters_cache.lowering import lower
from adapters_cache.manifest import digest_of, make_manifest
from server.core import BaseInfo
from server.errors import AdapterdError, MalformedCheckpoint, UnsupportedConfig
from server.primitives import SiteKind


def assert_equal(one: Checkpoint, two: Checkpoint) -> None:
    for field in ("name", "model_type", "hidden_size", "config", "base_fingerprint"):
        assert getattr(one, field) == getattr(two, field), field
    assert_same_tensors(one.tensors, two.tensors)
    assert (one.head is None) == (two.head is None)
    if one.head and two.head:
        assert one.head.name == two.head.name and one.head.config == two.head.config
        assert_same_tensors(one.head.tensors, two.head.tensors)


def assert_same_tensors(one: Any, two: Any) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)


def edit(path: Path, **changes: object) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not ...}))


@pytest.mark.parametrize("index", range(len(CONFIGS) * len(HEADS)))
def test_what_is_written_is_read_back(tmp_path: Path, base: BaseInfo, index: int) -> None:
    written = make_variant(tmp_path / "a", base, index, configs=CONFIGS)
    assert_equal(read_checkpoint(tmp_path / "a"), written)


@pytest.mark.parametrize("model_type", [*FAMILIES])
def test_every_method_and_head_of_every_family_is_read_back(tmp_path: Path, base: BaseInfo, model_type: str) -> None:
    base = dataclasses.replace(base, model_type=model_type, layers_per_group=3 if model_type == "albert" else 1)
    heads = [head for head in (*HEADS, *OTHER_HEADS) if family_of(model_type).has_pooler or not pools(head)]
    for index in range(len(configs_for(base))):
        written = make_variant(tmp_path / f"{index}", base, index * (1 + len(configs_for(base))), heads=heads)
        assert_equal(read_checkpoint(tmp_path / f"{index}"), written)


def pools(head: Mapping[str, Any] | None) -> bool:
    return bool(head and head.get("use_pooler"))


@pytest.mark.parametrize("as_bin", [False, True])
def test_fusion_is_read_back(tmp_path: Path, base: BaseInfo, as_bin: bool) -> None:
    kinds = (SiteKind.ATTENTION, SiteKind.OUTPUT)
    written = make_fusion(tmp_path / "f", base, ["a", "b"], kinds=kinds, name="my_fusion", as_bin=as_bin)
    assert_equal(read_checkpoint(tmp_path / "f"), written)
    assert written.method == "fusion" and read_checkpoint(tmp_path / "f", name="x").name == "x"


def test_fusion_of_old_files_names_its_members_by_its_name(tmp_path: Path, base: BaseInfo) -> None:
    make_fusion(tmp_path / "f", base, ["a", "b"], config="static")
    edit(tmp_path / "f" / "adapter_fusion_config.json", adapter_names=..., version=..., config="static")
    config = read_checkpoint(tmp_path / "f").config
    assert config is not None and config["members"] == ["a", "b"] and config["value"] is False


def test_tensors_of_a_fusion_whose_name_begins_alike_are_left_out(tmp_path: Path, base: BaseInfo) -> None:
    written = make_fusion(tmp_path / "f", base, ["a", "b"])
    make_fusion(tmp_path / "g", base, ["a", "bc"], seed=1)
    both = {**load_file(tmp_path / "f" / FUSION_FILES[0]), **load_file(tmp_path / "g" / FUSION_FILES[0])}
    save_file(both, tmp_path / "f" / FUSION_FILES[0])
    assert_equal(read_checkpoint(tmp_path / "f"), written)


def test_heads_in_folders_of_their_own_are_read_too(tmp_path: Path, base: BaseInfo) -> None:
    one = random_checkpoint(base, head={"head_type": "tagging"}, name="a")
    others = tuple(random_head(name, base, {"head_type": "classification"}) for name in ("x", "y"))
    write_checkpoint(tmp_path / "a", dataclasses.replace(one, other_heads=others), base)
    found = read_checkpoint(tmp_path / "a")
    assert found.head and found.head.name == "a" and [head.name for head in found.other_heads] == ["x", "y"]
    spec, _ = lower(found, base)
    assert [*spec.heads] == ["a", "x", "y"] and spec.head is spec.heads["a"]
    assert digest_of(found, "f") != digest_of(one, "f")


def test_renamed_adapter_has_its_head_under_the_new_name(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "a", base, config="prompt_tuning", head={"head_type": "tagging"})
    found = read_checkpoint(tmp_path / "a", name="b")
    assert found.name == "b" and found.head is not None and found.head.name == "b"
    assert lower(found, base)[0].prompt is not None


@pytest.mark.parametrize(("field", "value"), [("phm_layer", False), ("phm_bias", False), ("shared_phm_rule", False)])
def test_fields_that_the_library_mixes_up_are_taken_from_tensors(
    tmp_path: Path, base: BaseInfo, field: str, value: object
) -> None:
    written = make_adapter(tmp_path / "a", base, config="compacter[reduction_factor=4,phm_dim=2]")
    edit(tmp_path / "a" / "adapter_config.json", config={**(written.config or {}), field: value, "phm_dim": 4})
    assert_equal(read_checkpoint(tmp_path / "a"), written)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_every_family_is_written_under_its_own_prefix(tmp_path: Path, base: BaseInfo, model_type: str) -> None:
    base = dataclasses.replace(base, model_type=model_type)
    written = make_adapter(tmp_path / "a", base, head={"head_type": "tagging"})
    prefix = {"bert": "bert."}.get(model_type, "roberta.")
    keys = list(load_file(tmp_path / "a" / "adapter.safetensors"))
    assert all(key.startswith(f"{prefix}encoder.layer.") and ".output.adapters.a." in key for key in keys)
    assert all(key.startswith("heads.a.1.") for key in load_file(tmp_path / "a" / "model_head.safetensors"))
    assert_equal(read_checkpoint(tmp_path / "a"), written)


def test_pickles_and_safetensors_are_the_same_adapter(tmp_path: Path, base: BaseInfo) -> None:
    for index in (1, 5, 7, 16):  # with and without tensors under two keys, with and without a head
        safe = make_variant(tmp_path / f"safe{index}", base, index)
        make_variant(tmp_path / f"bin{index}", base, index, as_bin=True)
        assert not list((tmp_path / f"bin{index}").glob("*.safetensors"))
        found = read_checkpoint(tmp_path / f"bin{index}", name=safe.name)
        assert digest_of(found, "f") == digest_of(safe, "f")


def test_safetensors_are_preferred(tmp_path: Path, base: BaseInfo) -> None:
    written = make_adapter(tmp_path / "a", base)
    (tmp_path / "a" / "pytorch_adapter.bin").write_bytes(b"not read")
    assert_equal(read_checkpoint(tmp_path / "a"), written)


def test_stored_dtype_is_chosen_by_the_writer(tmp_path: Path, base: BaseInfo) -> None:
    write_checkpoint(tmp_path / "a", random_checkpoint(base), base, torch.float16)
    assert {t.dtype for t in read_checkpoint(tmp_path / "a").tensors.values()} == {torch.float16}


def test_head_alone_is_an_adapter_without_method(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "a", base, config=None, head={"head_type": "classification"})
    checkpoint = read_checkpoint(tmp_path / "a")
    assert checkpoint.method == "none" and not checkpoint.tensors and checkpoint.head is not None


def test_head_of_another_folder_replaces_the_own_one(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "a", base, head={"head_type": "tagging"})
    make_adapter(tmp_path / "solo", base, config=None, head={"head_type": "classification"})
    checkpoint = read_checkpoint(tmp_path / "a", head_path=tmp_path / "solo")
    assert checkpoint.name == "a" and checkpoint.head is not None
    assert checkpoint.head.name == "solo" and checkpoint.head.config["head_type"] == "classification"


def test_layers_left_out_while_reading_lose_their_tensors(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "a", base, leave_out=[2])
    checkpoint = read_checkpoint(tmp_path / "a", leave_out=[0])
    assert checkpoint.config is not None and checkpoint.config["leave_out"] == [0, 2]
    assert {key.split(".")[2] for key in checkpoint.tensors} == {"1"}


def test_digest_depends_on_neither_name_nor_folder(tmp_path: Path, base: BaseInfo) -> None:
    digests = set()
    for name in ("a", "output"):
        make_adapter(tmp_path / name, base, head={"head_type": "tagging"}, seed=3)
        digests.add(make_manifest(read_checkpoint(tmp_path / name), base).digest)
    assert len(digests) == 1


def test_digest_depends_on_everything_that_answers_depend_on(base: BaseInfo) -> None:
    head = {"head_type": "tagging", "label2id": {"x": 0, "y": 1}}
    one = random_checkpoint(base, head=head)
    others = [
        random_checkpoint(base, head=head, seed=1),
        random_checkpoint(base, head={**head, "label2id": {"y": 0, "x": 1}}),
        random_checkpoint(base, config="seq_bn[non_linearity=gelu]", head=head),
        random_checkpoint(base, head=head, leave_out=[2]),
        random_checkpoint(base, head=head, dtype=torch.float16),
        random_checkpoint(base),
        random_checkpoint(base, config=None, head=head),
    ]
    digests = {digest_of(checkpoint, "base") for checkpoint in [one, *others]} | {digest_of(one, "other base")}
    assert len(digests) == len(others) + 2


def test_manifest_counts_parameters(base: BaseInfo) -> None:
    checkpoint = random_checkpoint(base, config="seq_bn[reduction_factor=8]", head={"head_type": "tagging"})
    manifest = make_manifest(checkpoint, base)
    assert manifest.num_parameters == 3 * (2 * 4 * 32 + 4 + 32) + 2 * 32 + 2
    assert (manifest.method, manifest.model_type, manifest.hidden_size) == ("bottleneck", "bert", 32)


@pytest.mark.parametrize("field", ["name", "model_type", "hidden_size"])
@pytest.mark.parametrize("value", [..., None, [], True])
def test_envelope_without_its_facts_is_malformed(tmp_path: Path, base: BaseInfo, field: str, value: object) -> None:
    make_adapter(tmp_path / "a", base)
    edit(tmp_path / "a" / "adapter_config.json", **{field: value})
    with pytest.raises(MalformedCheckpoint, match=field):
        read_checkpoint(tmp_path / "a")


def test_unknown_field_is_refused_before_tensors_are_read(tmp_path: Path, base: BaseInfo) -> None:
    written = make_adapter(tmp_path / "a", base)
    edit(tmp_path / "a" / "adapter_config.json", config={**(written.config or {}), "quantum": 1})
    (tmp_path / "a" / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedConfig, match="config.quantum is 1"):
        read_checkpoint(tmp_path / "a")


def test_missing_files_are_malformed(tmp_path: Path, base: BaseInfo) -> None:
    with pytest.raises(MalformedCheckpoint, match="adapter_config.json"):
        read_checkpoint(tmp_path)
    make_adapter(tmp_path / "a", base)
    (tmp_path / "a" / "adapter.safetensors").unlink()
    with pytest.raises(MalformedCheckpoint, match="pytorch_adapter.bin"):
        read_checkpoint(tmp_path / "a")


def test_head_for_another_base_than_the_adapter_is_malformed(tmp_path: Path, base: BaseInfo) -> None:
    make_adapter(tmp_path / "a", base, head={"head_type": "tagging"})
    edit(tmp_path / "a" / "head_config.json", hidden_size=64)
    with pytest.raises(MalformedCheckpoint, match="32 .* 64"):
        read_checkpoint(tmp_path / "a")


def test_errors_never_tell_a_path(tmp_path: Path, base: BaseInfo) -> None:
    for number, name in enumerate(("adapter_config.json", "adapter.safetensors", "head_config.json")):
        make_adapter(tmp_path / f"{number}", base, head={"head_type": "tagging"})
        (tmp_path / f"{number}" / name).write_bytes(b"garbage")
        with pytest.raises(AdapterdError) as caught:
            read_checkpoint(tmp_path / f"{number}")
        assert str(tmp_path) not in caught.value.message and name in caught.value.message
