"""The shape of a base without its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_bases import save_base
from make_tokenizer import save_tokenizer
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from server.config import ModelConfig
from server.errors import InvalidInput, UnsupportedConfig
from server.model.base import Base, load_base
from server.model.outline import outline, weight_names


def test_an_outline_says_what_loading_says_but_for_the_fingerprint(base: Base, tmp_path: Path) -> None:
    found = outline(tmp_path, str(tmp_path), None)
    assert found.info == replace(base.info, fingerprint="")
    assert found.num_parameters == sum(parameter.numel() for parameter in base.model.parameters())


def test_the_mask_token_comes_from_the_tokenizer(tmp_path: Path) -> None:
    save_tokenizer(save_base(tmp_path))
    assert outline(tmp_path, "tiny", tmp_path).info.mask_token_id == 4


def test_a_pooler_without_weights_is_none(tmp_path: Path) -> None:
    save_base(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if "pooler" not in key}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not outline(tmp_path, "tiny", None).info.has_pooler
    assert not load_base(ModelConfig(base=str(tmp_path), device="cpu")).info.has_pooler


def test_weights_may_lie_in_several_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in ("one", "two")}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_names(tmp_path) == {"one", "two"}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"lacks two\.safetensors"):
        weight_names(tmp_path)


@pytest.mark.parametrize("text", ["{}", "no json", '{"weight_map": 1}', "[]"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"index\.json cannot be read"):
        weight_names(tmp_path)


def test_pickled_weights_are_there_and_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert weight_names(tmp_path) == set()


def test_weights_that_are_missing_or_cut_off_are_told(tmp_path: Path) -> None:
    save_base(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match="it may be cut off"):
        outline(tmp_path, "tiny", None)
    path.unlink()
    with pytest.raises(InvalidInput, match="holds no weights"):
        outline(tmp_path, "tiny", None)


def test_a_family_that_is_not_served_is_refused(tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedConfig, match="'gpt2' is not served"):
        outline(tmp_path, "gpt", None)
