"""Score the demo adapters on their test splits through a running server, beside what their cards say.

    adapterd serve --adapters examples/adapters &
    python -m training.evaluate --data DIR [--server 127.0.0.1:50051]

Exits 1 if a score differs from its card by more than one thousandth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from adapterd import Client
from adapterd.v1 import inference_pb2 as v1
from training.data import Example
from training.demo import DEMO_TASKS, DemoTask
from training.scores import entities

MARGIN = 1e-3
BATCH = 64
Found = set[tuple[int, str, int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cards", type=Path, default=Path("examples/adapters"))
    parser.add_argument("--server", default="127.0.0.1:50051")
    args = parser.parse_args()
    table = Table("adapter", "metric", "card", "through the server", box=None, pad_edge=False)
    is_equal = True
    with Client(args.server) as client:
        for task in DEMO_TASKS:
            card = json.loads((args.cards / task.name / "metrics.json").read_text(encoding="utf-8"))
            score = evaluate(client, task, task.read(args.data).splits["test"])
            table.add_row(task.name, task.metric, f"{card['score']:.4f}", f"{score:.4f}")
            is_equal &= abs(score - card["score"]) <= MARGIN
    Console().print(table)
    sys.exit(0 if is_equal else 1)


def evaluate(client: Client, task: DemoTask, examples: Sequence[Example]) -> float:
    """The task's own metric over `examples`, from the answers that a user gets."""
    results = list(_answers(client, task.name, examples))
    if task.head_type == "tagging":
        return _f1(_found(results), _wanted(examples))
    if task.head_type == "multilabel_classification":
        return _f1(
            {(i, label.label, 0, 0) for i, r in enumerate(results) for label in r.multi_label.labels},
            {(i, label, 0, 0) for i, example in enumerate(examples) for label in example.label},
        )
    right = [r.classification.labels[0].label == e.label for r, e in zip(results, examples, strict=True)]
    return sum(right) / len(right)


def _answers(client: Client, adapter: str, examples: Sequence[Example]) -> Iterator[v1.Result]:
    for start in track(range(0, len(examples), BATCH), description=adapter, transient=True):
        yield from client.predict(adapter, [example.text for example in examples[start : start + BATCH]]).results


def _found(results: Sequence[v1.Result]) -> Found:
    return {(i, e.label, e.start, e.end) for i, r in enumerate(results) for e in r.token_classification.entities}


def _wanted(examples: Sequence[Example]) -> Found:
    """Gold entities by their character offsets."""
    wanted: Found = set()
    for i, example in enumerate(examples):
        words, starts, position = example.text.split(), [], 0
        for word in words:
            starts.append(position)
            position += len(word) + 1
        for kind, first, last in entities(example.label):
            wanted.add((i, kind, starts[first], starts[last - 1] + len(words[last - 1])))
    return wanted


def _f1(found: Found, wanted: Found) -> float:
    return 2 * len(found & wanted) / max(1, len(found) + len(wanted))


if __name__ == "__main__":
    main()
