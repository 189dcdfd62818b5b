"""Thousands of adapters in folders: a few that are made, and variations of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from adapters_cache.formats.adapterhub import write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from loadtest.bench import random_checkpoint
from server.model.base import Base

METHODS = (
    "seq_bn[reduction_factor=16]",
    "seq_bn[reduction_factor=8]",
    "seq_bn[reduction_factor=2]",
    "double_seq_bn[reduction_factor=4]",
    "par_bn[reduction_factor=1]",
    "lora[r=8]",
    "lora[r=32]",
    "compacter[reduction_factor=4,phm_dim=4]",
    "ia3",
    "prefix_tuning[flat=True,prefix_length=20]",
    "loreft",
    "mam",
)
LARGE = "seq_bn[reduction_factor=0.125]"  # 2 MB on this base
SHAPE: dict[str, Any] = dict(
    vocab_size=1000,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=128,
)


@dataclass(frozen=True, slots=True)
class Names:
    """The mixed ones, and the large ones of equal size."""

    mixed: tuple[str, ...]
    large: tuple[str, ...]


def save_small_base(folder: Path) -> None:
    """A BERT so small that what surrounds the device's work shows."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPE)).save_pretrained(folder)


def make_fleet(folder: Path, base: Base, num: int, num_large: int, advance: Callable[[], None]) -> Names:
    """Write `num` adapters of all METHODS in turn, and some large ones, each with weights of its own."""
    made = [random_checkpoint(base, seed, method) for seed, method in enumerate(METHODS)]
    large = random_checkpoint(base, len(METHODS), LARGE)
    names = Names(tuple(f"a{i:05}" for i in range(num)), tuple(f"large{i:03}" for i in range(num_large)))
    for i, name in enumerate(names.mixed):
        _write(folder / name, made[i % len(made)], i, base)
        advance()
    for i, name in enumerate(names.large):
        _write(folder / name, large, i, base)
        advance()
    return names


def _write(path: Path, checkpoint: Checkpoint, number: int, base: Base) -> None:
    """As `checkpoint`, its head's last bias apart: that is enough for another digest and other answers."""
    head = checkpoint.head
    assert head is not None
    last = [key for key in head.tensors if key.endswith("bias")][-1]
    tensors = {**head.tensors, last: head.tensors[last].detach() + number * 1e-3}
    head = replace(head, name=path.name, tensors=tensors)
    write_checkpoint(path, replace(checkpoint, name=path.name, head=head), base.info)
