"""Stage 5, last step: from the numbers of a head to the answer a caller reads. Plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core import (
    Answer,
    BatchInfo,
    BranchOutput,
    Classification,
    Embedding,
    Encoding,
    LabelScore,
    MultiLabel,
    Parameters,
    QuestionAnswering,
    Regression,
    Result,
    SampleOutput,
    Span,
    TextInput,
    TokenClassification,
    TokenInfo,
)
from server.errors import InvalidInput
from server.primitives import AdapterSpec, Head, Task

DEFAULT_THRESHOLD = 0.5  # of a multi-label head
MAX_ANSWER_TOKENS = 30
MAX_ANSWERS = 100

Floats = NDArray[np.float64]


def check_parameters(head: Head | None, parameters: Parameters) -> None:
    """Raises InvalidInput for what this task cannot do; to be called before compute."""
    if head and head.task is Task.QUESTION_ANSWERING and (parameters.top_k or 1) > MAX_ANSWERS:
        raise InvalidInput(f"top_k {parameters.top_k} exceeds {MAX_ANSWERS}, the limit of answers to one question")


def shape_result(output: SampleOutput, encoding: Encoding, spec: AdapterSpec | None, parameters: Parameters) -> Result:
    """The answer of an adapter's own head for one input; see `shape_branch`."""
    return shape_branch(output.branches[0], output.batch, encoding, spec.head if spec else None, parameters)


def shape_branch(
    output: BranchOutput,
    batch: BatchInfo,
    encoding: Encoding,
    head: Head | None,
    parameters: Parameters,
    answer: Answer | None = None,
) -> Result:
    """The answer for one input.

    output    values [C], [T, C] or [H]
    head      None for a pooled vector
    answer    what is known already of tasks that are not answered here
    """
    task, labels = head.task if head else Task.EMBEDDING, head.labels if head else ()
    return Result(
        answer=answer or _ANSWERS[task](output.values.astype(np.float64), encoding, labels, parameters),
        num_tokens=encoding.num_tokens,
        is_truncated=encoding.is_truncated,
        batch=batch,
        logits=output.values if head and parameters.return_logits else None,
        tokens=_tokens(output, encoding, task, labels) if parameters.return_tokens else (),
    )


def _classification(
    values: Floats, encoding: Encoding, labels: Sequence[str], parameters: Parameters
) -> Classification:
    return Classification(_ranked(softmax(values), labels, parameters, threshold=0.0))


def _multi_label(values: Floats, encoding: Encoding, labels: Sequence[str], parameters: Parameters) -> MultiLabel:
    return MultiLabel(_ranked(sigmoid(values), labels, parameters, threshold=DEFAULT_THRESHOLD))


def _regression(values: Floats, encoding: Encoding, labels: Sequence[str], parameters: Parameters) -> Regression:
    return Regression(tuple(values.tolist()))


def _embedding(values: Floats, encoding: Encoding, labels: Sequence[str], parameters: Parameters) -> Embedding:
    norm = np.linalg.norm(values) if parameters.normalize else 1.0
    return Embedding((values / norm if norm > 0 else values).astype(np.float32))


def _ranked(
    scores: Floats, labels: Sequence[str], parameters: Parameters, *, threshold: float
) -> tuple[LabelScore, ...]:
    """Labels by falling score, equal ones in the head's order, cut by threshold and top k."""
    assert len(labels) == len(scores), f"{len(scores)} logits for {len(labels)} labels"
    least = threshold if parameters.threshold is None else parameters.threshold
    order = np.argsort(-scores, kind="stable")[: parameters.top_k]
    return tuple(LabelScore(labels[i], float(scores[i])) for i in order if scores[i] >= least)


# tagging


@dataclass(slots=True)
class _Entity:
    label: str
    is_prefixed: bool
    first: int  # position of the first token
    last: int
    scores: list[float]


def _token_classification(
    values: Floats, encoding: Encoding, labels: Sequence[str], parameters: Parameters
) -> TokenClassification:
    scores = softmax(values)
    best = scores.argmax(axis=1)
    words = [(first, last, labels[best[first]], float(scores[first].max())) for first, last in _words(encoding)]
    spans = (
        span(encoding, entity.first, entity.last, 0, entity.label, float(np.mean(entity.scores)))
        for entity in _entities(words)
    )
    least = parameters.threshold or 0.0
    return TokenClassification(tuple(entity for entity in spans if entity.score >= least))


def _words(encoding: Encoding) -> Iterator[tuple[int, int]]:
    """First and last position of every word of the text; of token ids, every token is one."""
    if not encoding.offsets:
        yield from ((i, i) for i in range(encoding.num_tokens))
        return
    positions = [i for i, segment in enumerate(encoding.segments) if segment == 0]
    first = 0
    for i, position in enumerate(positions):
        word = encoding.word_ids[position]
        is_last = i + 1 == len(positions) or word is None or encoding.word_ids[positions[i + 1]] != word
        if is_last:
            yield positions[first], position
            first = i + 1


def _entities(words: Sequence[tuple[int, int, str, float]]) -> list[_Entity]:
    """Runs of words of one type.

    Labels follow BIO, BIOES or BILOU where they have such a prefix; without one, equal neighbours belong together.
    A continuation that continues nothing starts an entity.
    """
    entities: list[_Entity] = []
    is_open = False
    for first, last, name, score in words:
        prefix, label = _split(name)
        if label == "O" and not prefix:
            is_open = False
            continue
        continues = prefix in ("I", "E", "L", "") and is_open
        if continues and (entities[-1].label, entities[-1].is_prefixed) == (label, bool(prefix)):
            entities[-1].last = last
            entities[-1].scores.append(score)
        else:
            entities.append(_Entity(label, bool(prefix), first, last, [score]))
        is_open = prefix not in ("E", "L", "S", "U")
    return entities


def _split(name: str) -> tuple[str, str]:
    """Prefix and type of a label: ("B", "city") of "B-city", ("", "city") of "city"."""
    return (name[0], name[2:]) if len(name) > 2 and name[1] == "-" and name[0] in "BIESLU" else ("", name)


# question answering


def _question_answering(
    values: Floats, encoding: Encoding, labels: Sequence[str], parameters: Parameters
) -> QuestionAnswering:
    """The best spans of the context, none overlapping a better one. values [T, 2]: start and end logits."""
    context, segment = _context(encoding)
    if not len(context):
        return QuestionAnswering(())
    start, end = softmax(values[context].T)
    width = min(MAX_ANSWER_TOKENS, len(context))
    ends = np.lib.stride_tricks.sliding_window_view(np.append(end, np.zeros(width - 1)), width)
    scores = start[:, None] * ends  # [context, width]: the answer from i of d + 1 tokens
    spans = _best_spans(scores, parameters.top_k or 1)
    return QuestionAnswering(
        tuple(span(encoding, int(context[i]), int(context[j]), segment, "", float(scores[i, j - i])) for i, j in spans)
    )


def _context(encoding: Encoding) -> tuple[NDArray[np.intp], int]:
    """Positions of the context's tokens, and its segment: the pair, or the text if there is none."""
    sides = np.asarray(encoding.segments if encoding.offsets else encoding.token_type_ids)
    segment = 1 if (sides == 1).any() else 0
    return np.flatnonzero(sides == segment), segment


def _best_spans(scores: Floats, num_spans: int) -> list[tuple[int, int]]:
    chosen: list[tuple[int, int]] = []
    rows, width = scores.shape
    last = np.arange(rows)[:, None] + np.arange(width)
    left = np.where(last < rows, scores, -1.0)
    while len(chosen) < num_spans:
        i, extra = divmod(int(left.argmax()), width)
        if left[i, extra] < 0:
            break
        chosen.append((i, i + extra))
        near = slice(max(0, i - width + 1), i + extra + 1)  # whatever overlaps starts here and ends at `i` or later
        left[near][last[near] >= i] = -1.0
    return chosen


# shared


def softmax(values: Floats) -> Floats:
    """Over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(values: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(0.5 * values))  # cannot overflow
    return result


def span(encoding: Encoding, first: int, last: int, segment: int, label: str, score: float) -> Span:
    """Tokens `first` to `last` as a piece of their segment; of token ids, offsets count tokens."""
    if not encoding.offsets or not isinstance(encoding.source, TextInput):
        return Span("", label, score, first, last + 1)
    text = (encoding.source.text_pair if segment else encoding.source.text) or ""
    start, end = encoding.offsets[first][0], encoding.offsets[last][1]
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())  # some tokenizers count the space before a word as part of it
    return Span(piece.strip(), label, score, start, start + len(piece.strip()))


def _tokens(output: BranchOutput, encoding: Encoding, task: Task, labels: Sequence[str]) -> tuple[TokenInfo, ...]:
    best = output.values.argmax(axis=-1) if task is Task.TOKEN_CLASSIFICATION else None
    tokens = []
    for i, token_id in enumerate(encoding.input_ids):
        text, (start, end) = (encoding.tokens[i], encoding.offsets[i]) if encoding.offsets else ("", (i, i + 1))
        is_special = bool(encoding.segments) and encoding.segments[i] < 0
        label = labels[best[i]] if best is not None and not is_special else ""
        tokens.append(TokenInfo(text, token_id, start, end, label))
    return tuple(tokens)


_ANSWERS: dict[Task, Callable[[Floats, Encoding, Sequence[str], Parameters], Answer]] = {
    Task.EMBEDDING: _embedding,
    Task.CLASSIFICATION: _classification,
    Task.MULTI_LABEL: _multi_label,
    Task.REGRESSION: _regression,
    Task.TOKEN_CLASSIFICATION: _token_classification,
    Task.QUESTION_ANSWERING: _question_answering,
}
