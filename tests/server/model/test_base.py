from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from make_bases import save_base
from safetensors.torch import load_file, save_file
from transformers import AutoModel, GPT2Config, GPT2Model

from server.config import ModelConfig
from server.core import Encoding, TokenInput
from server.errors import InvalidInput, UnsupportedConfig
from server.model.base import Base, dtype_of, load_base
from server.model.packing import PackedBatch
from server.model.routing import Route, RoutingPlan
from server.model.sites import Phase


def encoding(*ids: int) -> Encoding:
    return Encoding(ids, (0,) * len(ids), TokenInput(ids))


def alone(base: Base, packed: PackedBatch) -> torch.Tensor:
    """[T, H] of the base without adapters."""
    routes = [Route(None)] * len(packed.spans)
    return base.forward([Phase(0, packed, RoutingPlan({}, routes, packed.spans))])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_packed_samples_equal_transformers_on_each_alone(base: Base, dtype: str, tmp_path: Path) -> None:
    plain = AutoModel.from_pretrained(tmp_path).eval()
    base = load_base(ModelConfig(base=str(tmp_path), device="cpu", dtype=dtype))
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 70, (n,), generator=generator).tolist() for n in (1, 3, 3, 30, 7)]
    with torch.inference_mode():
        packed = base.packer.pack([encoding(*ids) for ids in texts])
        hidden = alone(base, packed)
        for ids, (start, end) in zip(texts, packed.spans, strict=True):
            want = plain(input_ids=torch.tensor([ids])).last_hidden_state[0]
            tolerance = {"float32": 1e-5, "bfloat16": 6e-2, "float16": 8e-3}[dtype]
            torch.testing.assert_close(hidden[start:end].float(), want, atol=tolerance, rtol=tolerance)


def test_padding_token_inside_a_sample_takes_its_family_position(base: Base, tmp_path: Path) -> None:
    plain = AutoModel.from_pretrained(tmp_path).eval()
    ids = (5, plain.config.pad_token_id, 9)
    with torch.inference_mode():
        hidden = alone(base, base.packer.pack([encoding(*ids)]))
        want = plain(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(hidden, want, atol=1e-5, rtol=1e-5)


def test_longest_input_is_what_the_positions_allow(base: Base) -> None:
    longest = encoding(*[7] * base.info.max_tokens)
    with torch.inference_mode():
        assert alone(base, base.packer.pack([longest])).shape == (base.info.max_tokens, base.info.hidden_size)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16), ("cuda:1", torch.bfloat16)]
)
def test_dtype_follows_the_device_unless_named(device: str, dtype: torch.dtype) -> None:
    assert dtype_of("auto", torch.device(device)) is dtype
    assert dtype_of("float16", torch.device(device)) is torch.float16


def test_fingerprint_follows_weights_and_not_dtype_or_place(tmp_path: Path) -> None:
    first = load_base(ModelConfig(base=str(save_base(tmp_path / "a")), device="cpu"))
    again = load_base(ModelConfig(base=str(save_base(tmp_path / "b")), device="cpu", dtype="bfloat16"))
    other = load_base(ModelConfig(base=str(save_base(tmp_path / "c", seed=1)), device="cpu"))
    assert first.info.fingerprint == again.info.fingerprint != other.info.fingerprint


def test_stitching_leaves_parameter_names_alone(base: Base, tmp_path: Path) -> None:
    assert set(base.model.state_dict()) == set(AutoModel.from_pretrained(tmp_path).state_dict())


def test_base_without_pooler_weights_gets_none_made_up(tmp_path: Path) -> None:
    save_base(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, tmp_path / "model.safetensors")
    reports: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = reports.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        assert load_base(ModelConfig(base=str(tmp_path), device="cpu")).heads.pooler is None
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert reports == []  # the library would report it as a fault


def test_base_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    save_base(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layer.0.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInput, match="encoder.layer.0.output.dense.weight"):
        load_base(ModelConfig(base=str(tmp_path), device="cpu"))


def test_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedConfig, match="gpt2.*albert, bert"):
        load_base(ModelConfig(base=str(tmp_path), device="cpu"))


def test_base_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="neither"):
        load_base(ModelConfig(base=str(tmp_path / "nothing")))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "meta", "cpu:0:1", "cuda:"])
def test_device_that_nobody_knows_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(InvalidInput, match=f"device '{device}' is not one of auto, cpu"):
        load_base(ModelConfig(base=str(save_base(tmp_path)), device=device))


def test_device_that_this_machine_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="device 'cuda:99' asked for, but this machine shows"):
        load_base(ModelConfig(base=str(save_base(tmp_path)), device="cuda:99"))
