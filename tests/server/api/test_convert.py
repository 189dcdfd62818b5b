"""Replies of every task as messages, and requests as our data."""

from __future__ import annotations

import numpy as np
import pytest

from adapterd.v1 import inference_pb2 as v1
from server.api.convert import to_request, to_response
from server.config import ApiConfig
from server.core import (
    Answer,
    BatchInfo,
    Classification,
    Embedding,
    LabelScore,
    MultiLabel,
    Pooling,
    QuestionAnswering,
    Regression,
    Reply,
    Result,
    Span,
    TextInput,
    Timings,
    TokenClassification,
    TokenInfo,
    TokenInput,
    Truncation,
)

SPAN = Span("Rome", "city", 0.5, 3, 7)


def result_of(answer: Answer) -> v1.Result:
    logits = np.arange(6, dtype=np.float32).reshape(3, 2)
    result = Result(answer, 3, True, BatchInfo(1, 2, 3, 4), logits, (TokenInfo("ro", 17, 3, 5, "B-city"),))
    return to_response(Reply("a", "d", (result,), Timings())).results[0]


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        (Classification(()), "classification"),
        (MultiLabel(()), "multi_label"),
        (Regression(()), "regression"),
        (TokenClassification(()), "token_classification"),
        (QuestionAnswering(()), "question_answering"),
        (Embedding(np.zeros(0, np.float32)), "embedding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_empty_answer_still_says_its_task(answer: Answer, field: str) -> None:
    assert result_of(answer).WhichOneof("result") == field


def test_answers_keep_labels_scores_and_offsets() -> None:
    labels = result_of(MultiLabel((LabelScore("x", 0.75), LabelScore("y", 0.5)))).multi_label.labels
    assert [(item.label, item.score) for item in labels] == [("x", 0.75), ("y", 0.5)]
    entity = result_of(TokenClassification((SPAN,))).token_classification.entities[0]
    assert (entity.label, entity.text, entity.start, entity.end, entity.score) == ("city", "Rome", 3, 7, 0.5)
    answer = result_of(QuestionAnswering((SPAN,))).question_answering.answers[0]
    assert (answer.text, answer.start, answer.end, answer.score) == ("Rome", 3, 7, 0.5)
    assert list(result_of(Regression((1.5, 2.5))).regression.values) == [1.5, 2.5]
    assert list(result_of(Embedding(np.array([0.5, 1], np.float32))).embedding.values) == [0.5, 1]


def test_logits_tokens_and_batch_are_carried_along() -> None:
    result = result_of(Regression((0.0,)))
    assert list(result.logits.shape) == [3, 2] and list(result.logits.values) == [0, 1, 2, 3, 4, 5]
    assert (result.tokens[0].text, result.tokens[0].id, result.tokens[0].label) == ("ro", 17, "B-city")
    assert (result.batch.id, result.batch.num_samples, result.batch.num_adapters) == (1, 2, 4)
    assert (result.num_tokens, result.is_truncated) == (3, True)


def test_requests_keep_pairs_tokens_and_parameters() -> None:
    message = v1.PredictRequest(
        adapter="a",
        inputs=[
            v1.Input(text=v1.Text(text="q", text_pair="")),
            v1.Input(text=v1.Text(text="alone")),
            v1.Input(tokens=v1.Tokens(input_ids=[1, 2], token_type_ids=[0, 1])),
        ],
        parameters=v1.Parameters(
            top_k=0,
            threshold=0.0,
            truncation=v1.TRUNCATION_ONLY_SECOND,
            pooling=v1.POOLING_LAST,
            normalize=True,
        ),
    )
    request = to_request(message, ApiConfig(), 12.5)
    assert request.inputs == (TextInput("q", ""), TextInput("alone"), TokenInput((1, 2), (0, 1)))
    assert (request.parameters.top_k, request.parameters.threshold) == (0, 0.0)
    assert request.parameters.truncation is Truncation.ONLY_SECOND
    assert request.parameters.pooling is Pooling.LAST
    assert request.parameters.normalize and not request.parameters.return_logits
    assert request.deadline == 12.5


def test_what_a_request_leaves_out_is_the_default() -> None:
    request = to_request(v1.PredictRequest(adapter="base"), ApiConfig(), None)
    assert (request.parameters.top_k, request.parameters.threshold) == (None, None)
    assert request.parameters.truncation is Truncation.REFUSE
    assert request.parameters.pooling is Pooling.MEAN
