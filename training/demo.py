"""Train the demo adapters of `examples/adapters` on SST-2 and SNIPS.

    python -m training.demo --data DIR --output examples/adapters [--only sst2-sentiment] [--epochs 8]

DIR holds `sst2/{train,dev,test}.tsv` and `snips/{train,dev,test}/{seq.in,seq.out,label}`. Each adapter is stored with
its card; next to its test score stands that of a linear head on the same, frozen base without an adapter.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.metrics import f1_score  # type: ignore[import-untyped]
from sklearn.multiclass import OneVsRestClassifier  # type: ignore[import-untyped]
from torch import Tensor

from adapters_cache.formats.adapterhub import VERSION, write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.formats.configs import canonical_config
from server.config import ModelConfig
from server.core import Encoding, Parameters, Pooling, TextInput
from server.model.base import Base, load_base
from server.model.heads import HeadRow, pool
from server.model.routing import Route, RoutingPlan
from server.model.sites import Phase
from server.tokenizer import Tokenizer
from training import scores
from training.card import Card, write_card
from training.data import Dataset, Example, read_snips, read_sst2
from training.parameters import new_checkpoint, new_head
from training.train import IGNORED, Item, TrainConfig, Trainer

STORED = torch.float16  # half the size; the test score is that of the rounded weights
Score = Callable[[Sequence[Tensor], Sequence[Item]], float]


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One demo adapter: its data, its method in AdapterHub's words, its head, and how it is scored."""

    name: str
    read: Callable[[Path], Dataset]
    method: str
    head_type: str
    metric: str
    epochs: int


def _sst2(data: Path) -> Dataset:
    return read_sst2(data / "sst2")


def _snips(target: str) -> Callable[[Path], Dataset]:
    return lambda data: read_snips(data / "snips", target)


TASKS = (
    DemoTask("sst2-sentiment", _sst2, "seq_bn[reduction_factor=16]", "classification", "accuracy", 8),
    DemoTask("snips-intent", _snips("intent"), "double_seq_bn", "classification", "accuracy", 4),
    DemoTask("snips-slots", _snips("slots"), "seq_bn[reduction_factor=16]", "tagging", "entity F1", 10),
    DemoTask(
        "snips-topics",
        _snips("mentions"),
        "scaled_par_bn[reduction_factor=8]",
        "multilabel_classification",
        "micro F1",
        6,
    ),
)


class DemoTrainer:
    """Trains demo tasks on one base."""

    def __init__(self, data: Path, output: Path, epochs: int | None, seed: int) -> None:
        self._data, self._output, self._epochs, self._seed = data, output, epochs, seed
        self._base: Base = load_base(ModelConfig(dtype="float32"))
        self._tokenizer = Tokenizer(self._base.tokenizer_path, self._base.info, num_threads=2)

    def train(self, task: DemoTask) -> Card:
        """Train one task with and without its adapter, store the adapter and its card."""
        dataset = task.read(self._data)
        items = {split: self._items(examples, dataset) for split, examples in dataset.splits.items()}
        config = canonical_config({"config": task.method, "version": VERSION}, has_invertible=False)
        baseline, _ = self._fit(task, "linear head, frozen base", None, dataset, items)
        if task.head_type != "tagging":
            baseline = max(baseline, self._probe(items))
        test_score, best = self._fit(task, task.name, config, dataset, items)
        write_checkpoint(self._output / task.name, best, self._base.info, STORED)
        card = Card(
            name=task.name,
            method=task.method,
            head=task.head_type,
            base="all-MiniLM-L6-v2",
            dataset=dataset.name,
            sizes=dataset.sizes,
            metric=task.metric,
            score=test_score,
            baseline=baseline,
            labels=dataset.labels,
            command=f"python -m training.demo --data DIR --output examples/adapters --only {task.name}",
        )
        write_card(self._output / task.name, card)
        return card

    def _fit(
        self, task: DemoTask, title: str, config: dict[str, Any] | None, dataset: Dataset, items: dict[str, list[Item]]
    ) -> tuple[float, Checkpoint]:
        info = self._base.info
        head = new_head(task.name, info, task.head_type, dataset.labels, self._seed)
        checkpoint = new_checkpoint(task.name, info, config, head, self._seed)
        settings = TrainConfig(epochs=self._epochs or task.epochs, seed=self._seed)
        settings = settings if config else replace(settings, learning_rate=1e-2)
        trainer = Trainer(self._base, checkpoint, settings)
        score = _scorer(task, dataset)
        with Progress() as bar:
            row = bar.add_task(f"{task.name}: {title}", total=None)
            best, dev_score = trainer.fit(
                items["train"],
                lambda logits: score(logits, items["dev"]),
                items["dev"],
                lambda step, steps, loss: bar.update(
                    row, completed=step, total=steps, description=f"{task.name}: {title}, loss {loss:.3f}"
                ),
            )
        stored = _rounded(best)
        logits = Trainer(self._base, stored, settings).predict([item.encoding for item in items["test"]])
        test_score = score(logits, items["test"])
        print(f"{task.name}: {title}: {task.metric} dev {dev_score:.4f} test {test_score:.4f}", flush=True)
        return test_score, stored

    def _probe(self, items: dict[str, list[Item]]) -> float:
        """Test score of a logistic regression on the base's mean vectors."""
        features = {split: self._mean_vectors(items[split]) for split in ("train", "test")}
        gold = {split: torch.stack([item.target for item in items[split]]).squeeze(1).numpy() for split in features}
        model: Any = LogisticRegression(C=10.0, max_iter=500)
        if gold["train"].ndim == 1:
            return float(model.fit(features["train"], gold["train"]).score(features["test"], gold["test"]))
        model = OneVsRestClassifier(model).fit(features["train"], gold["train"])
        return float(f1_score(gold["test"], model.predict(features["test"]), average="micro"))

    @torch.inference_mode()
    def _mean_vectors(self, items: list[Item], batch_size: int = 64) -> NDArray[np.float32]:
        vectors = []
        for start in range(0, len(items), batch_size):
            batch = [item.encoding for item in items[start : start + batch_size]]
            packed = self._base.packer.pack(batch)
            hidden = self._base.forward([Phase(0, packed, RoutingPlan({}, [Route(None)] * len(batch), packed.spans))])
            vectors += [pool(hidden, HeadRow(s, e), Pooling.MEAN) for s, e in zip(packed.spans, batch, strict=True)]
        return torch.stack(vectors).float().cpu().numpy()

    def _items(self, examples: list[Example], dataset: Dataset) -> list[Item]:
        inputs = [TextInput(example.text) for example in examples]
        encodings = asyncio.run(self._tokenizer.encode(inputs, Parameters()))
        index = {label: i for i, label in enumerate(dataset.labels)}
        return [
            Item(encoding, _target(example, encoding, index, dataset))
            for example, encoding in zip(examples, encodings, strict=True)
        ]


def _target(example: Example, encoding: Encoding, index: dict[str, int], dataset: Dataset) -> Tensor:
    if isinstance(example.label, str):
        return torch.tensor([index[example.label]])
    if "O" in index:
        return torch.tensor([index.get(tag, IGNORED) if tag else IGNORED for tag in token_tags(example, encoding)])
    row = torch.zeros(len(index))
    row[[index[label] for label in example.label if label in index]] = 1.0
    return row


def token_tags(example: Example, encoding: Encoding) -> list[str]:
    """The tag of each token that opens a word as the tokenizer sees words, "" for the others.

    A word of the data that the tokenizer splits (at punctuation) goes on as I- of the same type.
    """
    bounds, position = [], 0
    tags: list[str] = []
    seen: set[int] = set()
    previous: int | None = None
    for word in example.text.split():
        bounds.append(position)
        position += len(word) + 1
    for (start, _), word_id in zip(encoding.offsets, encoding.word_ids, strict=True):
        if word_id is None or word_id == previous:
            tags.append("")
            continue
        previous = word_id
        number = max(i for i, bound in enumerate(bounds) if bound <= start)
        tag = example.label[number]
        tags.append("I-" + tag[2:] if number in seen and tag.startswith("B-") else tag)
        seen.add(number)
    return tags


def _scorer(task: DemoTask, dataset: Dataset) -> Score:
    if task.head_type == "tagging":

        def tags(rows: Sequence[Tensor], items: Sequence[Item]) -> list[list[str]]:
            return [
                [dataset.labels[int(c)] for c, gold in zip(row, item.target, strict=True) if gold != IGNORED]
                for row, item in zip(rows, items, strict=True)
            ]

        return lambda logits, items: scores.entity_f1(
            tags([row.argmax(-1) for row in logits], items), tags([item.target for item in items], items)
        )
    score = scores.multi_label_f1 if task.head_type.startswith("multilabel") else scores.accuracy
    return lambda logits, items: score(logits, [item.target for item in items])


def _rounded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it will be read back."""
    assert checkpoint.head is not None
    head = replace(checkpoint.head, tensors={k: v.to(STORED).float() for k, v in checkpoint.head.tensors.items()})
    return replace(checkpoint, tensors={k: v.to(STORED).float() for k, v in checkpoint.tensors.items()}, head=head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("examples/adapters"))
    parser.add_argument("--only", choices=[task.name for task in TASKS])
    parser.add_argument("--epochs", type=int, help="instead of each task's own number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trainer = DemoTrainer(args.data, args.output, args.epochs, args.seed)
    for task in TASKS:
        if args.only in (None, task.name):
            trainer.train(task)


if __name__ == "__main__":
    main()
