"""A short training run on a tiny base."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from make_bases import save_base

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import VERSION, read_checkpoint, write_checkpoint
from adapters_cache.formats.configs import canonical_config
from server.config import ModelConfig
from server.core import Encoding, TokenInput
from server.model.base import Base, load_base
from training.parameters import new_checkpoint, new_head
from training.scores import accuracy
from training.train import IGNORED, Item, TrainConfig, Trainer

SETTINGS = TrainConfig(epochs=6, learning_rate=1e-2, batch_size=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))), device="cpu"))


def trainer(base: Base, head_type: str, num_labels: int, method: str) -> Trainer:
    labels = tuple(f"l{i}" for i in range(num_labels))
    config = canonical_config({"config": method, "version": VERSION}, has_invertible=False)
    head = new_head("tiny", base.info, head_type, labels, seed=0)
    return Trainer(base, new_checkpoint("tiny", base.info, config, head, seed=0), SETTINGS)


def items(head_type: str, seed: int, num: int = 48) -> list[Item]:
    """Which of two tokens an input starts with, or each token's half of the vocabulary."""
    rng, made = random.Random(seed), []
    for _ in range(num):
        ids = tuple(rng.choices(range(5, 70), k=rng.randint(3, 10)))
        first = rng.choice((10, 50))
        ids = (first, *ids)
        target = {
            "classification": torch.tensor([int(first > 30)]),
            "multilabel_classification": torch.tensor([float(first > 30), float(first < 30)]),
            "tagging": torch.tensor([IGNORED, *(int(i > 35) for i in ids[1:])]),
        }[head_type]
        made.append(Item(Encoding(ids, (0,) * len(ids), TokenInput(ids)), target))
    return made


@pytest.mark.parametrize(
    ("head_type", "method"),
    [
        ("classification", "seq_bn[reduction_factor=4]"),
        ("multilabel_classification", "scaled_par_bn[reduction_factor=4]"),
        ("tagging", "double_seq_bn[reduction_factor=4]"),
    ],
)
def test_training_lowers_the_loss(base: Base, head_type: str, method: str) -> None:
    losses: list[float] = []
    fitting = trainer(base, head_type, 2, method)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    fitting.fit(items(head_type, 1), lambda logits: 0.0, items(head_type, 2, 4), lambda *args: losses.append(args[2]))
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


def test_what_was_trained_is_written_and_reads_back(base: Base, tmp_path: Path) -> None:
    fitting, dev = trainer(base, "classification", 2, "seq_bn[reduction_factor=4]"), items("classification", 2)
    targets = [item.target for item in dev]
    best, score = fitting.fit(
        items("classification", 1), lambda logits: accuracy(logits, targets), dev, lambda *args: None
    )
    assert score >= 0.9
    write_checkpoint(tmp_path / "tiny", best, base.info, torch.float16)
    read = read_checkpoint(tmp_path / "tiny")
    assert read.head is not None and read.head.config["labels"] == ("l0", "l1")
    assert build_adapter(read, base.info, base.dtype).spec.head is not None
    logits = Trainer(base, read, SETTINGS).predict([item.encoding for item in dev])
    assert accuracy(logits, targets) >= score - 0.05
