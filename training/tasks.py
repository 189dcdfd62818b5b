"""What can be trained from a file: for each task its head, how labels become targets, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.metrics import (  # type: ignore[import-untyped]
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_squared_error,
    precision_recall_fscore_support,
)
from torch import Tensor

from server.core import Encoding
from server.errors import InvalidInput
from training.data import Example
from training.losses import IGNORED
from training.scores import entities, entity_f1

OUTSIDE = "O"
MAX_SHOWN = 20  # labels in a message


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A tokenized example. target: class [1], multi-hot [C], number [1], or class per token [T]."""

    encoding: Encoding
    target: Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """The metric that counts, all metrics by name, and what a task can show of its mistakes.

    confusion   [C][C] counts, gold by predicted, of tasks with one label
    by_label    precision, recall, f1 and support of each label or kind of entity
    """

    value: float
    metrics: Mapping[str, float]
    confusion: Sequence[Sequence[int]] = ()
    by_label: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One kind of task.

    metric    of `Scores.metrics`, which chooses the epoch that is kept; higher is better
    """

    name: str
    head_type: str
    metric: str
    labels_of: Callable[[Sequence[Example]], tuple[str, ...]]
    target: Callable[[Example, Encoding, Mapping[str, int]], Tensor]
    score: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[str]], Scores]
    has_tags: bool = False
    is_multi: bool = False


def _classes(examples: Sequence[Example]) -> tuple[str, ...]:
    """By number where all are numbers."""
    names = {str(example.label) for example in examples}
    if len(names) < 2:
        raise InvalidInput(f"the training file has one label, {min(names)!r}; a classifier needs at least two")
    is_number = all(name.lstrip("-").isdecimal() for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if is_number else (lambda name: (0, name))))


def _sets(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(sorted({name for example in examples for name in example.label}))


def _tags(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(sorted({*_sets(examples), OUTSIDE}, key=lambda tag: (tag != OUTSIDE, tag)))


def _class_target(example: Example, encoding: Encoding, index: Mapping[str, int]) -> Tensor:
    _check_known([str(example.label)], index)
    return torch.tensor([index[str(example.label)]])


def _set_target(example: Example, encoding: Encoding, index: Mapping[str, int]) -> Tensor:
    _check_known(example.label, index)
    row = torch.zeros(len(index))
    row[[index[label] for label in example.label]] = 1.0
    return row


def _check_known(labels: Sequence[str], index: Mapping[str, int]) -> None:
    """Raises InvalidInput: scores that leave out what could not be learnt would look better than they are."""
    if unknown := [label for label in labels if label not in index]:
        shown = ", ".join([*index][:MAX_SHOWN]) + (", ..." if len(index) > MAX_SHOWN else "")
        raise InvalidInput(
            f"label {unknown[0]!r} does not occur in the training file, which has {shown}; add examples of it there or"
            " leave its rows out here"
        )


def _number_target(example: Example, encoding: Encoding, index: Mapping[str, int]) -> Tensor:
    try:
        return torch.tensor([float(str(example.label))])
    except ValueError:
        raise InvalidInput(f"label {example.label!r} is not a number; regression needs numbers") from None


def _tag_target(example: Example, encoding: Encoding, index: Mapping[str, int]) -> Tensor:
    """What follows the first piece of a word may have an I- that training has not; it carries no label."""
    _check_known(example.label, index)
    return torch.tensor([index.get(tag, IGNORED) if tag else IGNORED for tag in token_tags(example, encoding)])


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
        number = int(np.searchsorted(bounds, start, side="right")) - 1
        tag = example.label[number]
        tags.append("I-" + tag[2:] if number in seen and tag.startswith("B-") else tag)
        seen.add(number)
    return tags


def _class_scores(logits: Sequence[Tensor], targets: Sequence[Tensor], labels: Sequence[str]) -> Scores:
    gold, found = [int(t) for t in targets], [int(row.argmax()) for row in logits]
    metrics = {
        "accuracy": float(accuracy_score(gold, found)),
        "macro F1": float(f1_score(gold, found, average="macro", zero_division=0)),
    }
    numbers = list(range(len(labels)))
    confusion = confusion_matrix(gold, found, labels=numbers).tolist()
    return Scores(metrics["accuracy"], metrics, confusion, _by_label(gold, found, labels))


def _by_label(gold: Any, found: Any, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    columns = precision_recall_fscore_support(gold, found, labels=list(range(len(labels))), zero_division=0)
    names = ("precision", "recall", "f1", "support")
    return {
        label: {name: float(column[i]) for name, column in zip(names, columns, strict=True)}
        for i, label in enumerate(labels)
    }


def _set_scores(logits: Sequence[Tensor], targets: Sequence[Tensor], labels: Sequence[str]) -> Scores:
    gold = np.array([t.int().tolist() for t in targets])
    found = np.array([(row > 0).int().tolist() for row in logits])
    metrics = {
        "micro F1": float(f1_score(gold, found, average="micro", zero_division=0)),
        "macro F1": float(f1_score(gold, found, average="macro", zero_division=0)),
        "exact": float((gold == found).all(axis=1).mean()),
    }
    return Scores(metrics["micro F1"], metrics, (), _by_label(gold, found, labels))


def _number_scores(logits: Sequence[Tensor], targets: Sequence[Tensor], labels: Sequence[str]) -> Scores:
    gold, found = (np.array([float(value) for value in values]) for values in (targets, logits))
    error = float(mean_squared_error(gold, found))
    spread = len(gold) > 1 and gold.std() > 0 and found.std() > 0
    pearson = float(np.corrcoef(gold, found)[0, 1]) if spread else 0.0
    return Scores(-error, {"negative squared error": -error, "squared error": error, "pearson": pearson})


def _tag_scores(logits: Sequence[Tensor], targets: Sequence[Tensor], labels: Sequence[str]) -> Scores:
    def named(rows: Sequence[Tensor]) -> list[list[str]]:
        return [
            [labels[int(c)] for c, gold in zip(row, target, strict=True) if gold != IGNORED]
            for row, target in zip(rows, targets, strict=True)
        ]

    gold, found = named(targets), named([row.argmax(-1) for row in logits])
    words = [(a, b) for g, f in zip(gold, found, strict=True) for a, b in zip(g, f, strict=True)]
    metrics = {"entity F1": entity_f1(found, gold), "accuracy": sum(a == b for a, b in words) / max(1, len(words))}
    return Scores(metrics["entity F1"], metrics, (), _by_entity(found, gold))


def _by_entity(found: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    spans = [{(i, *entity) for i, tags in enumerate(rows) for entity in entities(tags)} for rows in (found, gold)]
    result = {}
    for kind in sorted({span[1] for own in spans for span in own}):
        ours, theirs = ({span for span in own if span[1] == kind} for own in spans)
        right = len(ours & theirs)
        result[kind] = {
            "precision": right / max(1, len(ours)),
            "recall": right / max(1, len(theirs)),
            "f1": 2 * right / max(1, len(ours) + len(theirs)),
            "support": float(len(theirs)),
        }
    return result


TASKS: Mapping[str, TrainTask] = {
    task.name: task
    for task in (
        TrainTask("text-classification", "classification", "accuracy", _classes, _class_target, _class_scores),
        TrainTask(
            "multi-label-classification",
            "multilabel_classification",
            "micro F1",
            _sets,
            _set_target,
            _set_scores,
            is_multi=True,
        ),
        TrainTask(
            "regression", "classification", "negative squared error", lambda _: (), _number_target, _number_scores
        ),
        TrainTask("token-classification", "tagging", "entity F1", _tags, _tag_target, _tag_scores, has_tags=True),
    )
}
