"""One line of text for an answer, whatever its task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from adapterd.v1.inference_pb2 import LabelScore, Result, TokenScore, Word

MAX_LABELS_SHOWN = 3


def describe(result: Result, max_labels: int = MAX_LABELS_SHOWN) -> str:
    """`max_labels` of a classification; the others are given whole."""
    match result.WhichOneof("result"):
        case "classification":
            return _labels(result.classification.labels[:max_labels])
        case "multi_label":
            return _labels(result.multi_label.labels) or "none"
        case "regression":
            return ", ".join(f"{value:.3f}" for value in result.regression.values)
        case "token_classification":
            entities = result.token_classification.entities
            return ", ".join(f"{item.text} [{item.label}]" for item in entities) or "none"
        case "question_answering":
            return "; ".join(f"{item.text} ({item.score:.2f})" for item in result.question_answering.answers)
        case "embedding":
            values = result.embedding.values
            return f"[{', '.join(f'{value:.3f}' for value in values[:3])}, ...] {len(values)} dimensions"
        case "multiple_choice":
            return ", ".join(f"{item.text} {item.score:.2f}" for item in result.multiple_choice.choices)
        case "fill_mask":
            return "; ".join(_tokens(mask.tokens) for mask in result.fill_mask.masks)
        case "dependencies":
            return _tree(result.dependencies.words)
        case _:
            return ""


def rows_of(result: Result) -> Iterator[tuple[str, str]]:
    """(branch, answer): several of a Parallel or of several heads, else one without a name."""
    if not result.parallel:
        yield "", describe(result)
    for one in result.parallel:
        yield one.adapter if one.head in ("", one.adapter) else f"{one.adapter} > {one.head}", describe(one)


def labels_of(result: Result) -> list[str]:
    """The labels an answer gives; the best only where exactly one is right."""
    match result.WhichOneof("result"):
        case "classification":
            return [item.label for item in result.classification.labels[:1]]
        case "multi_label":
            return [item.label for item in result.multi_label.labels]
        case "token_classification":
            return [item.label for item in result.token_classification.entities]
        case _:
            return []


def _tokens(tokens: Iterable[TokenScore]) -> str:
    return ", ".join(f"{item.text} {item.score:.2f}" for item in tokens)


def _tree(words: Sequence[Word]) -> str:
    """Each word with its relation to the word it depends on."""
    names = ["root", *(word.text for word in words)]
    return ", ".join(f"{word.text} [{word.relation} of {names[word.head]}]" for word in words)


def _labels(labels: Iterable[LabelScore]) -> str:
    return ", ".join(f"{item.label} {item.score:.2f}" for item in labels)
