"""What all contenders read: one base, adapters with random weights in each library's own layout, and the texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from adapters_cache.formats.adapterhub import write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.configs import canonical_config
from loadtest import workload
from loadtest.bench import save_bert_base
from server.config import ModelConfig
from server.core import BaseInfo
from server.errors import UnsupportedConfig
from server.model.base import load_base, locate
from training.parameters import new_checkpoint, new_head

METHOD = "seq_bn[reduction_factor=16]"
LORA_RANK, LORA_ALPHA = 8, 16
LORA_TARGETS = ("query", "value")
BOTTLENECK, LORA, BASE = "bottleneck", "lora", "base"  # workloads


@dataclass(frozen=True, slots=True)
class Material:
    """Where it lies. `adapters` are folders by workload."""

    base: Path
    texts: Path
    adapters: Mapping[str, tuple[Path, ...]]
    num_tokens: tuple[int, ...]  # of each text


def make_material(folder: Path, base_name: str, num_adapters: int, num_tokens: int) -> Material:
    """Write everything into `folder`. Raises UnsupportedConfig for a base that is not BERT."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    base = folder / "base"
    _save_base(base_name, base)
    info = load_base(ModelConfig(base=str(base), device="cpu")).info
    if info.model_type != "bert":
        raise UnsupportedConfig(f"base {base_name!r} is {info.model_type!r}; peers are compared on 'bert'")
    texts = workload.encodings(num_tokens, info.vocab_size, seed=num_tokens)
    (folder / "texts.json").write_text(json.dumps([text.input_ids for text in texts]))
    adapters = {
        BOTTLENECK: tuple(_bottleneck(folder / BOTTLENECK / f"a{i}", info, i) for i in range(num_adapters)),
        LORA: tuple(_lora(folder / LORA / f"a{i}", info, i) for i in range(num_adapters)),
    }
    return Material(base, folder / "texts.json", adapters, tuple(text.num_tokens for text in texts))


def _save_base(name: str, folder: Path) -> None:
    if name == "bert-base":
        save_bert_base(folder)
    else:
        AutoModel.from_pretrained(locate(name), dtype=torch.float32).save_pretrained(folder)


def _bottleneck(folder: Path, base: BaseInfo, seed: int) -> Path:
    """An adapter with a two-class head of two layers, as AdapterHub's library makes and saves them."""
    config = canonical_config({"config": METHOD, "version": ""}, has_invertible=False)
    head = new_head(folder.name, base, "classification", ("no", "yes"), seed, layers=2)
    checkpoint: Checkpoint = new_checkpoint(folder.name, base, config, head, seed)
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*checkpoint.tensors.values(), *head.tensors.values()]:
        tensor.data.copy_(_random(tuple(tensor.shape), generator))
    write_checkpoint(folder, checkpoint, base)
    return folder


def _lora(folder: Path, base: BaseInfo, seed: int) -> Path:
    """Low-rank deltas of queries and values with a two-class head, as PEFT saves them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"classifier.weight": (2, base.hidden_size), "classifier.bias": (2,)}
    for layer in range(base.num_layers):
        for target in LORA_TARGETS:
            module = f"bert.encoder.layer.{layer}.attention.self.{target}"
            shapes[f"{module}.lora_A.weight"] = (LORA_RANK, base.hidden_size)
            shapes[f"{module}.lora_B.weight"] = (base.hidden_size, LORA_RANK)
    folder.mkdir(parents=True)
    tensors = {f"base_model.model.{key}": _random(shape, generator) for key, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base.name,
        "r": LORA_RANK,
        "lora_alpha": LORA_ALPHA,
        "target_modules": list(LORA_TARGETS),
        "modules_to_save": ["classifier"],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Large enough that a wrong adapter shows in the answers, small enough that they stay in range."""
    return torch.empty(shape).normal_(0.0, 0.5 * shape[-1] ** -0.5, generator=generator)
