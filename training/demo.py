"""Train the demo adapters of `examples/adapters` on SST-2 and SNIPS.

    python -m training.demo --data DIR --output examples/adapters [--only sst2-sentiment] [--epochs 8]

DIR holds `sst2/{train,dev,test}.tsv` and `snips/{train,dev,test}/{seq.in,seq.out,label}`. Each adapter is stored with
its card; next to its test score stands that of a linear head on the same, frozen base without an adapter.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
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
from server.core import Pooling
from server.model.base import Base, load_base
from server.model.heads import HeadRow, pool
from server.model.routing import Route, RoutingPlan
from server.model.sites import Phase
from training.card import Card, write_card
from training.data import Dataset, Example, read_snips, read_sst2
from training.fit import TrainConfig, fit, predict
from training.parameters import new_checkpoint, new_head
from training.run import encode
from training.stitch import AdapterModel
from training.tasks import TASKS, Item, Scores, TrainTask

STORED = torch.float16  # half the size; the test score is that of the rounded weights
LEARNING_RATE, HEAD_LEARNING_RATE = 1e-3, 1e-2


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One demo adapter: its data, its method in AdapterHub's words, and what kind of task it is."""

    name: str
    read: Callable[[Path], Dataset]
    method: str
    kind: TrainTask
    epochs: int

    @property
    def head_type(self) -> str:
        return self.kind.head_type

    @property
    def metric(self) -> str:
        return self.kind.metric


def _sst2(data: Path) -> Dataset:
    return read_sst2(data / "sst2")


def _snips(target: str) -> Callable[[Path], Dataset]:
    return lambda data: read_snips(data / "snips", target)


DEMO_TASKS = (
    DemoTask("sst2-sentiment", _sst2, "seq_bn[reduction_factor=16]", TASKS["text-classification"], 8),
    DemoTask("snips-intent", _snips("intent"), "double_seq_bn", TASKS["text-classification"], 4),
    DemoTask("snips-slots", _snips("slots"), "seq_bn[reduction_factor=16]", TASKS["token-classification"], 10),
    DemoTask(
        "snips-topics",
        _snips("mentions"),
        "scaled_par_bn[reduction_factor=8]",
        TASKS["multi-label-classification"],
        6,
    ),
)


class DemoTrainer:
    """Trains demo tasks on one base."""

    def __init__(self, data: Path, output: Path, epochs: int | None, seed: int) -> None:
        self._data, self._output, self._epochs, self._seed = data, output, epochs, seed
        self._base: Base = load_base(ModelConfig(dtype="float32"))

    def train(self, task: DemoTask) -> Card:
        """Train one task with and without its adapter, store the adapter and its card."""
        dataset = task.read(self._data)
        items = {split: self._items(task, examples, dataset) for split, examples in dataset.splits.items()}
        config = canonical_config({"config": task.method, "version": VERSION}, has_invertible=False)
        baseline, _ = self._fit(task, "linear head, frozen base", None, dataset, items)
        if task.head_type != "tagging":
            baseline = max(baseline, self._probe(items))
        test_score, best = self._fit(task, task.name, config, dataset, items)
        write_checkpoint(self._output / task.name, best, self._base.info, STORED)
        card = Card(
            name=task.name,
            task=task.kind.name,
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
        epochs = self._epochs or task.epochs
        rate = LEARNING_RATE if config else HEAD_LEARNING_RATE
        settings = TrainConfig(epochs, rate, patience=epochs, seed=self._seed)
        model = AdapterModel(self._base, checkpoint)

        def score(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Scores:
            return task.kind.score(logits, targets, dataset.labels)

        with Progress() as bar, TemporaryDirectory() as folder:
            row = bar.add_task(f"{task.name}: {title}", total=None)
            history = fit(
                model,
                items["train"],
                items["dev"],
                score,
                settings,
                Path(folder),
                lambda step, steps, loss: bar.update(
                    row, completed=step, total=steps, description=f"{task.name}: {title}, loss {loss:.3f}"
                ),
            )
        stored = _rounded(model.snapshot())
        logits = predict(AdapterModel(self._base, stored), items["test"])
        test_score = score(logits, [item.target for item in items["test"]]).value
        print(f"{task.name}: {title}: {task.metric} dev {history.best:.4f} test {test_score:.4f}", flush=True)
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

    def _items(self, task: DemoTask, examples: Sequence[Example], dataset: Dataset) -> list[Item]:
        index = {label: i for i, label in enumerate(dataset.labels)}
        pairs = zip(examples, encode(self._base, examples), strict=True)
        return [Item(encoding, task.kind.target(example, encoding, index)) for example, encoding in pairs]


def _rounded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it will be read back."""
    assert checkpoint.head is not None
    head = replace(checkpoint.head, tensors={k: v.to(STORED).float() for k, v in checkpoint.head.tensors.items()})
    return replace(checkpoint, tensors={k: v.to(STORED).float() for k, v in checkpoint.tensors.items()}, head=head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("examples/adapters"))
    parser.add_argument("--only", choices=[task.name for task in DEMO_TASKS])
    parser.add_argument("--epochs", type=int, help="instead of each task's own number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trainer = DemoTrainer(args.data, args.output, args.epochs, args.seed)
    for task in DEMO_TASKS:
        if args.only in (None, task.name):
            trainer.train(task)


if __name__ == "__main__":
    main()
