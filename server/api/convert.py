"""Stage 0, messages: protobuf to our plain data and back. What has no counterpart among ours is refused here."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapterd.v1 import inference_pb2 as v1
from server.config import ApiConfig
from server.core import (
    ANYONE,
    BASE,
    Answer,
    Classification,
    Dependencies,
    Embedding,
    FillMask,
    Input,
    LabelScore,
    Mask,
    MultiLabel,
    MultipleChoice,
    Parameters,
    Pooling,
    QuestionAnswering,
    Regression,
    Reply,
    Request,
    Result,
    Span,
    Tenant,
    TextInput,
    Timings,
    TokenClassification,
    TokenInput,
    Truncation,
    Word,
)
from server.errors import InvalidInput

MAX_NAME_CHARS = 256
VERSION = re.compile(r"[0-9a-f]{8,64}")
MAX_PRIORITY = 100
MAX_EXPRESSION_CHARS = 4096
MAX_CHOICES = 64
MAX_HEADS = 128
MAX_SKIP_LAYERS = 256

TRUNCATIONS: dict[int, Truncation] = {
    v1.TRUNCATION_UNSPECIFIED: Truncation.REFUSE,
    v1.TRUNCATION_LONGEST_FIRST: Truncation.LONGEST_FIRST,
    v1.TRUNCATION_ONLY_SECOND: Truncation.ONLY_SECOND,
}
POOLINGS: dict[int, Pooling] = {
    v1.POOLING_UNSPECIFIED: Pooling.MEAN,
    v1.POOLING_CLS: Pooling.CLS,
    v1.POOLING_MEAN: Pooling.MEAN,
    v1.POOLING_LAST: Pooling.LAST,
}


def to_request(
    message: v1.PredictRequest, config: ApiConfig, deadline: float | None, tenant: Tenant = ANYONE
) -> Request:
    """`deadline` is on the clock of `time.monotonic`. Raises InvalidInput with the offending value."""
    if abs(message.priority) > MAX_PRIORITY:
        raise InvalidInput(f"priority {message.priority} is not between {-MAX_PRIORITY} and {MAX_PRIORITY}")
    num_inputs = sum(max(1, len(item.text.choices)) for item in message.inputs)
    if num_inputs > config.max_inputs_per_request:
        raise InvalidInput(f"{num_inputs} inputs exceed the limit of {config.max_inputs_per_request} per request")
    return Request(
        adapter=to_expression(message.adapter),
        inputs=tuple(_to_input(index, item) for index, item in enumerate(message.inputs)),
        parameters=_to_parameters(message.parameters),
        deadline=deadline,
        heads=_to_heads(message.heads),
        skip_layers=_to_layers(message.skip_layers),
        sticky_key=message.sticky_key,
        priority=message.priority,
        tenant=tenant,
        version=to_version(message.version),
        size_bytes=message.ByteSize(),
    )


def _to_layers(layers: Sequence[int]) -> tuple[int, ...]:
    if len(layers) > MAX_SKIP_LAYERS:
        raise InvalidInput(f"{len(layers)} skip_layers exceed the limit of {MAX_SKIP_LAYERS} per request")
    return tuple(layers)


def _to_heads(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MAX_HEADS:
        raise InvalidInput(f"{len(names)} heads exceed the limit of {MAX_HEADS} per request")
    if "" in names:
        raise InvalidInput("heads holds an empty name; leave heads out for the adapter's own")
    return tuple(names)


def to_expression(text: str) -> str:
    """A name or a composition, not too long to be one. Raises InvalidInput."""
    if "(" not in text:
        return to_name(text)
    if len(text) > MAX_EXPRESSION_CHARS:
        raise InvalidInput(f"adapter expression of {len(text)} characters exceeds the limit of {MAX_EXPRESSION_CHARS}")
    return text


def to_name(name: str) -> str:
    """An adapter's name as a request gives it. Raises InvalidInput if it is empty or too long to be one."""
    if not name:
        raise InvalidInput(f'adapter is empty; name a registered adapter, or "{BASE}" for the base model alone')
    if len(name) > MAX_NAME_CHARS:
        raise InvalidInput(f"adapter name of {len(name)} characters exceeds the limit of {MAX_NAME_CHARS}")
    return name


def to_version(text: str) -> str:
    """A digest or its first digits, or nothing. Raises InvalidInput for what is none."""
    if text and not VERSION.fullmatch(text):
        raise InvalidInput(
            f"version {text[:MAX_NAME_CHARS]!r} is no digest; give 8 to 64 of the hex digits of one, or leave it out"
        )
    return text


def _to_input(index: int, message: v1.Input) -> Input:
    kind = message.WhichOneof("input")
    if kind == "text":
        pair = message.text.text_pair if message.text.HasField("text_pair") else None
        return TextInput(message.text.text, pair, _to_choices(index, message.text))
    if kind == "tokens":
        return TokenInput(tuple(message.tokens.input_ids), tuple(message.tokens.token_type_ids))
    raise InvalidInput(f"inputs[{index}] has neither text nor tokens; set one of them")


def _to_choices(index: int, message: v1.Text) -> tuple[str, ...]:
    choices = tuple(message.choices)
    if choices and message.HasField("text_pair"):
        raise InvalidInput(
            f"inputs[{index}] has text_pair and choices; a choice is the second segment, send one of them"
        )
    if len(choices) > MAX_CHOICES:
        raise InvalidInput(f"inputs[{index}] has {len(choices)} choices, the limit is {MAX_CHOICES}")
    for number, choice in enumerate(choices):
        if not choice.strip():
            raise InvalidInput(f"inputs[{index}].choices[{number}] is empty; send some text")
    return choices


def _to_parameters(message: v1.Parameters) -> Parameters:
    if message.truncation not in TRUNCATIONS:
        raise InvalidInput(f"truncation {message.truncation} is none of {v1.Truncation.keys()}")
    if message.pooling not in POOLINGS:
        raise InvalidInput(f"pooling {message.pooling} is none of {v1.Pooling.keys()}")
    return Parameters(
        top_k=message.top_k if message.HasField("top_k") else None,
        threshold=message.threshold if message.HasField("threshold") else None,
        truncation=TRUNCATIONS[message.truncation],
        pooling=POOLINGS[message.pooling],
        normalize=message.normalize,
        return_logits=message.return_logits,
        return_tokens=message.return_tokens,
    )


def to_response(reply: Reply) -> v1.PredictResponse:
    return v1.PredictResponse(
        adapter=reply.adapter,
        digest=reply.digest,
        results=[_from_result(result) for result in reply.results],
        timings=_from_timings(reply.timings),
    )


def _from_result(result: Result) -> v1.Result:
    batch = result.batch
    message = v1.Result(
        num_tokens=result.num_tokens,
        is_truncated=result.is_truncated,
        batch=v1.BatchInfo(
            id=batch.id,
            num_samples=batch.num_samples,
            num_tokens=batch.num_tokens,
            num_adapters=batch.num_adapters,
        ),
        tokens=[
            v1.Token(text=token.text, id=token.id, start=token.start, end=token.end, label=token.label)
            for token in result.tokens
        ],
    )
    if result.answer is not None:
        _set_answer(message, result.answer)
    message.parallel.extend(_from_result(one) for one in result.parallel)
    message.adapter, message.head = result.adapter, result.head
    if result.logits is not None:
        message.logits.CopyFrom(_from_array(result.logits))
    return message


def _set_answer(message: v1.Result, answer: Answer) -> None:
    """SetInParent, because an answer may be empty (no entity, no label) and still says what task it is of."""
    match answer:
        case Classification(labels):
            message.classification.SetInParent()
            message.classification.labels.extend(_from_labels(labels))
        case MultiLabel(labels):
            message.multi_label.SetInParent()
            message.multi_label.labels.extend(_from_labels(labels))
        case Regression(values):
            message.regression.SetInParent()
            message.regression.values.extend(values)
        case TokenClassification(entities):
            message.token_classification.SetInParent()
            message.token_classification.entities.extend(_from_entity(span) for span in entities)
        case QuestionAnswering(answers):
            message.question_answering.SetInParent()
            message.question_answering.answers.extend(_from_answer(span) for span in answers)
        case Embedding(vector):
            message.embedding.SetInParent()
            message.embedding.values.extend(vector.tolist())
        case MultipleChoice(choices):
            message.multiple_choice.SetInParent()
            message.multiple_choice.choices.extend(
                v1.Choice(index=item.index, score=item.score, text=item.text) for item in choices
            )
        case FillMask(masks):
            message.fill_mask.SetInParent()
            message.fill_mask.masks.extend(_from_mask(mask) for mask in masks)
        case Dependencies(words):
            message.dependencies.SetInParent()
            message.dependencies.words.extend(_from_word(word) for word in words)


def _from_labels(labels: tuple[LabelScore, ...]) -> list[v1.LabelScore]:
    return [v1.LabelScore(label=item.label, score=item.score) for item in labels]


def _from_mask(mask: Mask) -> v1.Mask:
    tokens = (v1.TokenScore(text=token.text, id=token.id, score=token.score) for token in mask.tokens)
    return v1.Mask(start=mask.start, end=mask.end, tokens=tokens)


def _from_word(word: Word) -> v1.Word:
    return v1.Word(
        text=word.text, start=word.start, end=word.end, head=word.head, relation=word.relation, score=word.score
    )


def _from_entity(span: Span) -> v1.Entity:
    return v1.Entity(label=span.label, score=span.score, start=span.start, end=span.end, text=span.text)


def _from_answer(span: Span) -> v1.Answer:
    return v1.Answer(text=span.text, score=span.score, start=span.start, end=span.end)


def _from_array(array: NDArray[np.float32]) -> v1.Tensor:
    return v1.Tensor(shape=array.shape, values=array.ravel().tolist())


def _from_timings(timings: Timings) -> v1.Timings:
    message = v1.Timings()
    message.admit.FromNanoseconds(round(timings.admit_s * 1e9))
    message.tokenize.FromNanoseconds(round(timings.tokenize_s * 1e9))
    message.ready.FromNanoseconds(round(timings.ready_s * 1e9))
    message.queue.FromNanoseconds(round(timings.queue_s * 1e9))
    message.compute.FromNanoseconds(round(timings.compute_s * 1e9))
    return message
