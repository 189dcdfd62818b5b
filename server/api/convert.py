"""Stage 0, messages: protobuf to our plain data and back. What has no counterpart among ours is refused here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adapterd.v1 import inference_pb2 as v1
from server.config import ApiConfig
from server.core import (
    BASE,
    Answer,
    Classification,
    Embedding,
    Input,
    LabelScore,
    MultiLabel,
    Parameters,
    Pooling,
    QuestionAnswering,
    Regression,
    Reply,
    Request,
    Result,
    Span,
    TextInput,
    Timings,
    TokenClassification,
    TokenInput,
    Truncation,
)
from server.errors import InvalidInput

MAX_NAME_CHARS = 256

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


def to_request(message: v1.PredictRequest, config: ApiConfig, deadline: float | None) -> Request:
    """`deadline` is on the clock of `time.monotonic`. Raises InvalidInput with the offending value."""
    num_inputs = len(message.inputs)
    if num_inputs > config.max_inputs_per_request:
        raise InvalidInput(f"{num_inputs} inputs exceed the limit of {config.max_inputs_per_request} per request")
    return Request(
        adapter=to_name(message.adapter),
        inputs=tuple(_to_input(index, item) for index, item in enumerate(message.inputs)),
        parameters=_to_parameters(message.parameters),
        deadline=deadline,
    )


def to_name(name: str) -> str:
    """An adapter's name as a request gives it. Raises InvalidInput if it is empty or too long to be one."""
    if not name:
        raise InvalidInput(f'adapter is empty; name a registered adapter, or "{BASE}" for the base model alone')
    if len(name) > MAX_NAME_CHARS:
        raise InvalidInput(f"adapter name of {len(name)} characters exceeds the limit of {MAX_NAME_CHARS}")
    return name


def _to_input(index: int, message: v1.Input) -> Input:
    kind = message.WhichOneof("input")
    if kind == "text":
        pair = message.text.text_pair if message.text.HasField("text_pair") else None
        return TextInput(message.text.text, pair)
    if kind == "tokens":
        return TokenInput(tuple(message.tokens.input_ids), tuple(message.tokens.token_type_ids))
    raise InvalidInput(f"inputs[{index}] has neither text nor tokens; set one of them")


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
    _set_answer(message, result.answer)
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


def _from_labels(labels: tuple[LabelScore, ...]) -> list[v1.LabelScore]:
    return [v1.LabelScore(label=item.label, score=item.score) for item in labels]


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
