"""Stage 5, around the heads: what each of them needs of an input, and one result for what several samples gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from server.composition import Node, check_lengths, leaves
from server.core import (
    BaseInfo,
    BranchOutput,
    Choice,
    Dependencies,
    Encoding,
    FillMask,
    Input,
    Mask,
    MultipleChoice,
    Parameters,
    Result,
    SampleOutput,
    Target,
    TextInput,
    TokenScore,
    Word,
)
from server.errors import InvalidInput, UnsupportedConfig
from server.postprocess import check_parameters, shape_branch, softmax, span
from server.primitives import Head, Task
from server.words import with_words

DEFAULT_TOKENS_PER_MASK = 5
MAX_VALUES = 1 << 24  # of one input, 64 MiB on their way to the host
NameToken = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Question:
    """An input of a request and its encodings: one, or one per choice."""

    source: Input
    encodings: tuple[Encoding, ...]


def spread(inputs: Sequence[Input]) -> list[Input]:
    """What is to be tokenized: an input with choices becomes one pair for each."""
    flat: list[Input] = []
    for source in inputs:
        if isinstance(source, TextInput) and source.choices:
            flat += [TextInput(source.text, choice) for choice in source.choices]
        else:
            flat.append(source)
    return flat


def gather(inputs: Sequence[Input], encodings: Sequence[Encoding]) -> list[Question]:
    """The inverse of `spread`."""
    left = iter(encodings)
    return [Question(source, tuple(next(left) for _ in range(_num_choices(source) or 1))) for source in inputs]


def _num_choices(source: Input) -> int:
    return len(source.choices) if isinstance(source, TextInput) else 0


def fitted(questions: Sequence[Question], target: Target, parameters: Parameters, base: BaseInfo) -> list[Question]:
    """The questions as the target's heads need them. Raises InvalidInput and UnsupportedConfig where one is no use."""
    heads = list(heads_of(target))
    for head in heads:
        check_parameters(head, parameters)
        if head is not None and head.task is Task.CAUSAL_LM:
            raise UnsupportedConfig(
                f"head {head.name!r} is a causal language model, which predicts the next token and is not served on an"
                " encoder; name another head"
            )
    questions = worded(questions, heads, base)
    for index, question in enumerate(questions):
        for head in heads:
            _check(index, question, head, base)
        _check_values(index, question, heads, base)
        for branch in target.branches:
            if branch.node is not None:
                for encoding in question.encodings:
                    check_lengths(branch.node, encoding.num_tokens)
                    _check_room(index, encoding, num_positions(branch.node, target), base)
    return list(questions)


def worded(questions: Sequence[Question], heads: Iterable[Head | None], base: BaseInfo) -> Sequence[Question]:
    """The questions with the words of their texts, if a parser is to answer."""
    if not any(head is not None and head.task is Task.DEPENDENCY_PARSING for head in heads):
        return questions
    return [
        Question(question.source, tuple(with_words(one, base.pad_token_id) for one in question.encodings))
        for question in questions
    ]


def num_positions(node: Node, target: Target) -> int:
    """How many of the base's positions the prompts and prefixes of a tree take from an input."""
    specs = [target.parts[int(leaf.adapter)].spec for leaf in leaves(node)]
    prompt = specs[0].prompt
    own = prompt.embeddings.shape[0] if prompt is not None and prompt.is_before_embeddings else 0
    return own + sum(spec.position_offset for spec in specs)


def _check_room(index: int, encoding: Encoding, taken: int, base: BaseInfo) -> None:
    """Beyond the table of positions there is nothing to look up, and the whole batch would fail."""
    if taken and encoding.num_tokens + taken > base.max_tokens:
        raise InvalidInput(
            f"input {index} has {encoding.num_tokens} tokens and the adapter's prompt or prefix takes {taken}"
            f" positions; the limit is {base.max_tokens} together; shorten it"
        )


def _check_values(index: int, question: Question, heads: Sequence[Head | None], base: BaseInfo) -> None:
    """A language model gives a value per mask and word of the vocabulary; that must stay within reason."""
    num_heads = sum(head is not None and head.task is Task.FILL_MASK for head in heads)
    num_masks = question.encodings[0].input_ids.count(base.mask_token_id or 0) if num_heads else 0
    if num_masks * base.vocab_size * num_heads > MAX_VALUES:
        raise InvalidInput(
            f"input {index} has {num_masks} masks for {num_heads} heads over {base.vocab_size} tokens; together they"
            f" may give {MAX_VALUES} values, so leave some masks for another request"
        )


def heads_of(target: Target) -> Iterator[Head | None]:
    """The head of each branch."""
    for branch in target.branches:
        yield None if branch.head is None else target.parts[branch.head[0]].spec.all_heads[branch.head[1]]


def _check(index: int, question: Question, head: Head | None, base: BaseInfo) -> None:
    """Raises InvalidInput where input number `index` lacks what `head` reads, or has what it does not."""
    task = head.task if head is not None else Task.EMBEDDING
    name = repr(head.name) if head is not None else "of no task"
    has_choices = _num_choices(question.source) > 0
    if (task is Task.MULTIPLE_CHOICE) != has_choices:
        raise InvalidInput(
            f"input {index} has choices, and head {name} answers no multiple-choice questions; leave them out"
            if has_choices
            else f"input {index} has no choices, and head {name} chooses among some; send a text with choices"
        )
    if task is Task.MULTIPLE_CHOICE and head is not None and head.reads_tokens:
        raise UnsupportedConfig(
            f"head {name} reads a pooler that {base.name} does not have and so scores every token, not every choice;"
            " use a head trained without use_pooler"
        )
    if task is Task.FILL_MASK:
        if base.mask_token_id is None:
            raise InvalidInput(f"head {name} fills masks, and the base {base.name} has no mask token")
        if base.mask_token_id not in question.encodings[0].input_ids:
            raise InvalidInput(
                f"input {index} has no mask (token id {base.mask_token_id}), and head {name} fills masks; put one in"
            )
    if task is Task.DEPENDENCY_PARSING and len(question.encodings[0].word_starts) < 2:
        raise InvalidInput(f"input {index} has no words, and head {name} parses words; send text, not token ids")


def shape(
    outputs: Sequence[SampleOutput],
    question: Question,
    heads: Sequence[Head | None],
    names: Sequence[tuple[str, str]],
    parameters: Parameters,
    name_token: NameToken,
    mask_token_id: int | None,
) -> Result:
    """The answer for one input.

    outputs   one per encoding of the question
    heads     of each branch
    names     of each branch: its adapters as an expression, and its head
    """
    results = []
    for number, head in enumerate(heads):
        branch = _joined([output.branches[number] for output in outputs])
        answer = None
        if head is not None and head.task in _ANSWERS:
            asked = _Asked(question, head, parameters, name_token, mask_token_id)
            answer = _ANSWERS[head.task](branch, asked)
        result = shape_branch(branch, outputs[0].batch, question.encodings[0], head, parameters, answer)
        results.append(_of_all(result, question))
    if len(results) == 1:
        return results[0]
    named = [replace(one, adapter=name, head=head) for one, (name, head) in zip(results, names, strict=True)]
    return Result(None, results[0].num_tokens, results[0].is_truncated, outputs[0].batch, parallel=tuple(named))


def _joined(branches: Sequence[BranchOutput]) -> BranchOutput:
    """The scores of all choices side by side."""
    if len(branches) == 1:
        return branches[0]
    return BranchOutput(np.concatenate([branch.values for branch in branches]))


def _of_all(result: Result, question: Question) -> Result:
    if len(question.encodings) == 1:
        return result
    return replace(
        result,
        num_tokens=sum(encoding.num_tokens for encoding in question.encodings),
        is_truncated=any(encoding.is_truncated for encoding in question.encodings),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    question: Question
    head: Head
    parameters: Parameters
    name_token: NameToken
    mask_token_id: int | None


def _multiple_choice(output: BranchOutput, asked: _Asked) -> MultipleChoice:
    """values [C]: a score per choice, one softmax over all."""
    source = asked.question.source
    assert isinstance(source, TextInput)
    scores = softmax(output.values.astype(np.float64))
    order = np.argsort(-scores, kind="stable")[: asked.parameters.top_k]
    least = asked.parameters.threshold or 0.0
    return MultipleChoice(
        tuple(Choice(int(i), source.choices[i], float(scores[i])) for i in order if scores[i] >= least)
    )


def _fill_mask(output: BranchOutput, asked: _Asked) -> FillMask:
    """values [masks, vocabulary]"""
    encoding = asked.question.encodings[0]
    masks = [i for i, token in enumerate(encoding.input_ids) if token == asked.mask_token_id]
    assert len(masks) == len(output.values), f"{len(output.values)} answers for {len(masks)} masks"
    return FillMask(
        tuple(
            Mask(*(encoding.offsets[position] if encoding.offsets else (position, position + 1)), _best(logits, asked))
            for position, logits in zip(masks, output.values, strict=True)
        )
    )


def _best(logits: NDArray[np.float32], asked: _Asked) -> tuple[TokenScore, ...]:
    """The likeliest tokens for one mask."""
    scores = softmax(logits.astype(np.float64))
    number = min(asked.parameters.top_k or DEFAULT_TOKENS_PER_MASK, len(scores))
    likeliest = np.argpartition(-scores, number - 1)[:number]
    order = sorted(likeliest.tolist(), key=lambda token: (-scores[token], token))
    least = asked.parameters.threshold or 0.0
    return tuple(TokenScore(asked.name_token(i), i, float(scores[i])) for i in order if scores[i] >= least)


def _dependencies(output: BranchOutput, asked: _Asked) -> Dependencies:
    """values [W, W + 1]: of each word the score of every head, 0 is the root; relations [W, W + 1, C]."""
    assert output.relations is not None
    encoding, labels = asked.question.encodings[0], asked.head.labels
    chances = softmax(output.values.astype(np.float64))
    words = []
    for number, (start, end) in enumerate(zip(encoding.word_starts, encoding.word_starts[1:], strict=False)):
        head = int(output.values[number].argmax())
        relation = labels[int(output.relations[number, head].argmax())]
        score = float(chances[number, head])
        found = span(encoding, start, end - 1, 0, relation, score)
        words.append(Word(found.text, found.start, found.end, head, relation, score))
    return Dependencies(tuple(words))


_ANSWERS: dict[Task, Callable[[BranchOutput, _Asked], MultipleChoice | FillMask | Dependencies]] = {
    Task.MULTIPLE_CHOICE: _multiple_choice,
    Task.FILL_MASK: _fill_mask,
    Task.DEPENDENCY_PARSING: _dependencies,
}
