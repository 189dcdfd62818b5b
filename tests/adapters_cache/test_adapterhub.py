from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from make_adapters import CONFIGS, HEADS, make_adapter, make_variant, random_checkpoint
from safetensors.torch import load_file

from adapters_cache.formats.adapterhub import read_checkpoint, write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.manifest import digest_of, make_manifest
from server.core import BaseInfo
from server.errors import AdapterdError, MalformedCheckpoint, UnsupportedConfig


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
    written = make_variant(tmp_path / "a", base, index)
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
