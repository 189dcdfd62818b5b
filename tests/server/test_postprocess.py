from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from fakes import make_encoding, make_output, make_spec
from numpy.typing import ArrayLike

from server.core import (
    Answer,
    Classification,
    Embedding,
    Encoding,
    MultiLabel,
    Parameters,
    QuestionAnswering,
    Regression,
    Result,
    Span,
    TextInput,
    TokenClassification,
)
from server.errors import InvalidInput
from server.postprocess import MAX_ANSWER_TOKENS, MAX_ANSWERS, check_parameters, shape_result
from server.primitives import Task

DEFAULT = Parameters()


def shape(
    values: ArrayLike,
    task: Task,
    labels: Sequence[str] = (),
    parameters: Parameters = DEFAULT,
    encoding: Encoding | None = None,
) -> Result:
    return shape_result(make_output(values), encoding or make_encoding(), make_spec(task, labels), parameters)


def encode_words(text: str, pair: str | None = None, piece: int = 4) -> Encoding:
    """An encoding with [CLS] and [SEP], words cut into pieces of at most `piece` characters."""
    offsets, segments, tokens, word_ids = [(0, 0)], [-1], ["[CLS]"], [None]
    for segment, words in enumerate(side for side in (text, pair) if side is not None):
        end = 0
        for word_id, word in enumerate(words.split()):
            start = words.index(word, end)
            end = start + len(word)
            for at in range(start, end, piece):
                offsets.append((at, min(at + piece, end)))
                segments.append(segment)
                tokens.append(words[at : offsets[-1][1]])
                word_ids.append(word_id)  # type: ignore[arg-type]
        offsets.append((0, 0))
        segments.append(-1)
        tokens.append("[SEP]")
        word_ids.append(None)
    ids = tuple(range(len(tokens)))
    return Encoding(
        ids,
        tuple(max(s, 0) for s in segments),
        TextInput(text, pair),
        tuple(offsets),
        tuple(segments),
        tuple(tokens),
        tuple(word_ids),
    )


def scores_of(answer: Answer) -> dict[str, float]:
    assert isinstance(answer, Classification | MultiLabel)
    return {item.label: item.score for item in answer.labels}


# one vector


def test_classification_gives_all_labels_by_falling_softmax() -> None:
    answer = shape([0.0, 2.0, 1.0], Task.CLASSIFICATION, ["a", "b", "c"]).answer
    expected = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    assert list(scores_of(answer)) == ["b", "c", "a"]
    assert list(scores_of(answer).values()) == pytest.approx(expected)


def test_top_k_and_threshold_cut_the_labels() -> None:
    values, labels = [0.0, 2.0, 1.0], ["a", "b", "c"]
    top = shape(values, Task.CLASSIFICATION, labels, Parameters(top_k=2)).answer
    assert list(scores_of(top)) == ["b", "c"]
    sure = shape(values, Task.CLASSIFICATION, labels, Parameters(threshold=0.5)).answer
    assert list(scores_of(sure)) == ["b"]


def test_huge_logits_do_not_overflow() -> None:
    answer = shape([3e38, -3e38], Task.CLASSIFICATION, ["a", "b"]).answer
    assert scores_of(answer) == {"a": 1.0, "b": 0.0}
    assert scores_of(shape([3e38, -3e38], Task.MULTI_LABEL, ["a", "b"]).answer) == {"a": 1.0}


def test_multi_label_gives_labels_from_one_half() -> None:
    values, labels = [0.0, -0.1, 3.0], ["even", "less", "more"]
    assert list(scores_of(shape(values, Task.MULTI_LABEL, labels).answer)) == ["more", "even"]
    loose = shape(values, Task.MULTI_LABEL, labels, Parameters(threshold=0.0)).answer
    assert scores_of(loose) == pytest.approx(dict(zip(labels, 1 / (1 + np.exp(-np.array(values))), strict=True)))


def test_regression_gives_raw_values() -> None:
    assert shape([1.5, -2.0], Task.REGRESSION, ["x", "y"]).answer == Regression((1.5, -2.0))


def test_embedding_is_scaled_to_unit_length_on_request() -> None:
    for parameters, expected in ((DEFAULT, [3, 4]), (Parameters(normalize=True), [0.6, 0.8])):
        answer = shape([3.0, 4.0], Task.EMBEDDING, parameters=parameters).answer
        assert isinstance(answer, Embedding)
        assert answer.values == pytest.approx(expected)


def test_zero_embedding_stays_zero() -> None:
    answer = shape([0.0, 0.0], Task.EMBEDDING, parameters=Parameters(normalize=True)).answer
    assert isinstance(answer, Embedding)
    assert answer.values.tolist() == [0, 0]


def test_base_alone_gives_an_embedding() -> None:
    result = shape_result(make_output([1.0]), make_encoding(), None, Parameters(return_logits=True))
    assert isinstance(result.answer, Embedding)
    assert result.logits is None


def test_logits_are_given_on_request() -> None:
    assert shape([1.0, 2.0], Task.CLASSIFICATION, ["a", "b"]).logits is None
    logits = shape([1.0, 2.0], Task.CLASSIFICATION, ["a", "b"], Parameters(return_logits=True)).logits
    assert logits is not None
    assert logits.tolist() == [1.0, 2.0]


# tagging


def tag(encoding: Encoding, tags: Sequence[str], parameters: Parameters = DEFAULT) -> Result:
    """Every token gets the tag of its place in `tags`, with the same logit."""
    labels = sorted({"O", *tags})
    values = np.zeros((encoding.num_tokens, len(labels)))
    values[np.arange(len(tags)), [labels.index(name) for name in tags]] = 5.0
    return shape(values, Task.TOKEN_CLASSIFICATION, labels, parameters, encoding)


def entities(text: str, word_tags: str, piece: int = 100) -> list[tuple[str, str]]:
    encoding = encode_words(text, piece=piece)
    answer = tag(encoding, ["O", *word_tags.split(), "O"]).answer
    assert isinstance(answer, TokenClassification)
    assert all(text[span.start : span.end] == span.text for span in answer.entities)
    return [(span.label, span.text) for span in answer.entities]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O O O", []),
        ("B-x I-x O B-y", [("x", "fly to"), ("y", "City")]),
        ("B-x B-x I-x O", [("x", "fly"), ("x", "to New")]),
        ("I-x I-x O I-y", [("x", "fly to"), ("y", "City")]),
        ("B-x I-y I-y O", [("x", "fly"), ("y", "to New")]),
        ("S-x B-x I-x E-x", [("x", "fly"), ("x", "to New City")]),
        ("B-x E-x I-x O", [("x", "fly to"), ("x", "New")]),
        ("U-x B-x L-x U-y", [("x", "fly"), ("x", "to New"), ("y", "City")]),
        ("x x y O", [("x", "fly to"), ("y", "New")]),
        ("x O x x", [("x", "fly"), ("x", "New City")]),
        ("B-x x I-x O", [("x", "fly"), ("x", "to"), ("x", "New")]),
        ("X-ray X-ray O O", [("X-ray", "fly to")]),
    ],
)
def test_entities_follow_the_tagging_scheme(tags: str, expected: list[tuple[str, str]]) -> None:
    assert entities("fly to New City", tags) == expected


def test_first_piece_of_a_word_decides() -> None:
    encoding = encode_words("in Springfield now")
    tags = ["O", "O", "B-city", "O", "B-other", "O", "O"]
    assert encoding.tokens == ("[CLS]", "in", "Spri", "ngfi", "eld", "now", "[SEP]")
    answer = tag(encoding, tags).answer
    assert isinstance(answer, TokenClassification)
    (span,) = answer.entities
    assert (span.text, span.label, span.start, span.end) == ("Springfield", "city", 3, 14)


def test_entity_score_is_the_mean_over_first_pieces() -> None:
    encoding = encode_words("New York", piece=2)
    values = np.zeros((encoding.num_tokens, 2))
    values[1], values[3] = [3.0, 0.0], [1.0, 0.0]
    answer = shape(values, Task.TOKEN_CLASSIFICATION, ["city", "O"], DEFAULT, encoding).answer
    assert isinstance(answer, TokenClassification)
    sigmoid = 1 / (1 + np.exp(-np.array([3.0, 1.0])))
    assert answer.entities[0].score == pytest.approx(sigmoid.mean())


def test_special_tokens_are_no_entities() -> None:
    encoding = encode_words("a b")
    answer = tag(encoding, ["B-x", "O", "O", "B-x"]).answer
    assert answer == TokenClassification(())


def test_unsure_entities_fall_under_the_threshold() -> None:
    encoding = encode_words("a b")
    assert tag(encoding, ["O", "B-x", "O", "O"], Parameters(threshold=0.999)).answer == TokenClassification(())


def test_offsets_of_entities_count_code_points() -> None:
    assert entities("😀 to Zürich 東京", "O O B-x B-x") == [("x", "Zürich"), ("x", "東京")]


def test_tokens_without_a_text_are_words_of_their_own() -> None:
    answer = tag(make_encoding(4), ["B-x", "I-x", "O", "B-y"]).answer
    assert isinstance(answer, TokenClassification)
    spans = [(span.label, span.start, span.end, span.text) for span in answer.entities]
    assert spans == [("x", 0, 2, ""), ("y", 3, 4, "")]


def test_space_that_a_tokenizer_counts_to_the_word_is_left_out() -> None:
    encoding = Encoding((1, 2), (0, 0), TextInput("to Rome"), ((0, 2), (2, 7)), (0, 0), ("to", "_Rome"), (0, 1))
    answer = tag(encoding, ["O", "B-x"]).answer
    assert isinstance(answer, TokenClassification)
    assert (answer.entities[0].text, answer.entities[0].start) == ("Rome", 3)


def test_tokens_are_given_with_their_labels_on_request() -> None:
    result = tag(encode_words("to Rome"), ["O", "O", "B-x", "O"], Parameters(return_tokens=True))
    assert [(t.text, t.label, t.start, t.end) for t in result.tokens] == [
        ("[CLS]", "", 0, 0),
        ("to", "O", 0, 2),
        ("Rome", "B-x", 3, 7),
        ("[SEP]", "", 0, 0),
    ]


# question answering


def ask(encoding: Encoding, values: ArrayLike, top_k: int | None = None) -> tuple[Span, ...]:
    answer = shape(values, Task.QUESTION_ANSWERING, ["start", "end"], Parameters(top_k=top_k), encoding).answer
    assert isinstance(answer, QuestionAnswering)
    return answer.answers


def reference_spans(encoding: Encoding, values: np.ndarray, num_spans: int) -> list[tuple[int, int, float]]:
    """All spans of the context, best first, without those that overlap a better one."""
    segment = 1 if 1 in encoding.segments else 0
    context = [i for i, s in enumerate(encoding.segments) if s == segment]
    start, end = (np.exp(values[context, side] - values[context, side].max()) for side in (0, 1))
    start, end = start / start.sum(), end / end.sum()
    spans = [
        (context[i], context[j], start[i] * end[j])
        for i in range(len(context))
        for j in range(i, min(len(context), i + MAX_ANSWER_TOKENS))
    ]
    chosen: list[tuple[int, int, float]] = []
    for span in sorted(spans, key=lambda span: -span[2]):
        if len(chosen) < num_spans and all(span[1] < i or j < span[0] for i, j, _ in chosen):
            chosen.append(span)
    return chosen


@pytest.mark.parametrize("pair", [None, "one two three four five six", "w " * 80, "single"])
@pytest.mark.parametrize("top_k", [None, 1, 5])
def test_answers_equal_a_search_over_all_spans(pair: str | None, top_k: int | None) -> None:
    encoding = encode_words("who did what", pair)
    for seed in range(5):
        values = np.random.default_rng(seed).normal(0, 3, (encoding.num_tokens, 2)).astype(np.float32)
        expected = reference_spans(encoding, values, top_k or 1)
        answers = ask(encoding, values, top_k)
        offsets = [(encoding.offsets[i][0], encoding.offsets[j][1]) for i, j, _ in expected]
        assert [(answer.start, answer.end) for answer in answers] == offsets
        assert [answer.score for answer in answers] == pytest.approx([score for _, _, score in expected])
        text = pair or "who did what"
        assert [answer.text for answer in answers] == [text[start:end] for start, end in offsets]


def test_answer_never_lies_in_the_question_or_on_special_tokens() -> None:
    encoding = encode_words("who is it", "it is Ada")
    values = np.zeros((encoding.num_tokens, 2))
    values[:5] = 100.0
    values[-1] = 100.0
    values[-2] = 5.0
    assert ask(encoding, values)[0].text == "Ada"


def test_answer_is_never_longer_than_the_limit() -> None:
    encoding = encode_words("q", "w " * 60)
    values = np.zeros((encoding.num_tokens, 2))
    values[3, 0] = values[-2, 1] = 4.0
    span = ask(encoding, values)[0]
    assert len(span.text.split()) <= MAX_ANSWER_TOKENS


def test_answer_within_token_ids_counts_tokens_of_the_second_type() -> None:
    source = make_encoding(6)
    encoding = Encoding(source.input_ids, (0, 0, 0, 1, 1, 1), source.source)
    values = np.zeros((6, 2))
    values[[0, 4], 0] = 9.0
    values[[0, 5], 1] = 9.0
    (span,) = ask(encoding, values)
    assert (span.start, span.end, span.text) == (4, 6, "")


def test_as_many_answers_as_the_context_gives_equal_a_search_over_all_spans() -> None:
    encoding = encode_words("q", "w " * 80)
    values = np.random.default_rng(1).normal(0, 0.01, (encoding.num_tokens, 2)).astype(np.float32)
    expected = reference_spans(encoding, values, MAX_ANSWERS)
    answers = ask(encoding, values, MAX_ANSWERS)
    assert len(answers) == len(expected) > 20
    assert [answer.score for answer in answers] == pytest.approx([score for _, _, score in expected])


def test_equal_spans_come_in_the_order_of_the_text() -> None:
    encoding = encode_words("q", "a b c")
    answers = ask(encoding, np.zeros((encoding.num_tokens, 2)), 3)
    assert [answer.text for answer in answers] == ["a", "b", "c"]


def test_only_a_search_limits_the_number_of_answers() -> None:
    many = Parameters(top_k=MAX_ANSWERS + 1)
    check_parameters(None, many)
    check_parameters(make_spec(Task.CLASSIFICATION, ["a"]).head, many)
    check_parameters(make_spec(Task.QUESTION_ANSWERING, ["start", "end"]).head, Parameters(top_k=MAX_ANSWERS))
    with pytest.raises(InvalidInput, match="top_k 101 exceeds 100"):
        check_parameters(make_spec(Task.QUESTION_ANSWERING, ["start", "end"]).head, many)
