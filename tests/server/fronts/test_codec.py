from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import make_base, make_encoding, make_spec

from server.core import BatchInfo, BranchOutput, Parameters, Pooling, SampleOutput, TextInput, TokenInput
from server.engine import Answerer, Computed, Work
from server.fronts.codec import decode_computed, decode_work, encode_computed, encode_work
from server.primitives import Task
from server.results import Question

BASE = make_base(pad_token_id=0)


def over_the_wire(message: Any) -> Any:
    return pickle.loads(pickle.dumps(message, protocol=5))


def test_work_keeps_all_that_the_engine_reads() -> None:
    text = replace(make_encoding(4), segments=(-1, 0, 0, -1), word_ids=(None, 0, 1, None), token_type_ids=(0, 0, 1, 1))
    question = Question(TextInput("a b"), (text,))
    parameters = Parameters(top_k=3, pooling=Pooling.LAST, return_logits=True)
    work = Work("Stack(a, b)", (question,), parameters, 12.5, ("h",), (1, 2))
    read = decode_work(*over_the_wire(encode_work(work, BASE)))
    assert (read.adapter, read.deadline, read.heads, read.skip_layers) == ("Stack(a, b)", 12.5, ("h",), (1, 2))
    assert (read.parameters.top_k, read.parameters.pooling) == (3, Pooling.LAST)
    [encoding] = read.questions[0].encodings
    assert (encoding.input_ids, encoding.token_type_ids) == (text.input_ids, text.token_type_ids)
    assert encoding.word_starts == (1, 2, 3)


@pytest.mark.parametrize("source", [TextInput("q", choices=("x", "y")), TextInput("q", "pair"), TokenInput((1, 2))])
def test_work_keeps_how_many_choices_there_are(source: TextInput | TokenInput) -> None:
    num_choices = len(source.choices) if isinstance(source, TextInput) else 0
    question = Question(source, (make_encoding(2),) * max(1, num_choices))
    [read] = decode_work(*over_the_wire(encode_work(Work("a", (question,), Parameters()), BASE))).questions
    assert isinstance(read.source, TextInput) == bool(num_choices)
    assert num_choices == (len(read.source.choices) if isinstance(read.source, TextInput) else 0)
    assert len(read.encodings) == len(question.encodings)


def test_answers_keep_numbers_batch_and_heads() -> None:
    head = make_spec(Task.CLASSIFICATION, ["no", "yes"]).head
    values = np.array([[1.5, -2.0]], np.float32)
    relations = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    output = SampleOutput((BranchOutput(values, relations), BranchOutput(values[0])), BatchInfo(7, 3, 40, 2), 0.1, 0.2)
    answer = Computed(Answerer("d" * 64, (("a", "head"), ("b", "")), (head, None)), (output,), 0.3)
    read = decode_computed(*over_the_wire(encode_computed(answer)))
    assert (read.answerer.digest, read.answerer.names) == (answer.answerer.digest, answer.answerer.names)
    assert read.answerer.heads[1] is None and read.answerer.heads[0] is not None
    assert (read.answerer.heads[0].task, read.answerer.heads[0].labels) == (Task.CLASSIFICATION, ("no", "yes"))
    [got] = read.outputs
    assert (got.batch, got.queue_s, got.compute_s, read.ready_s) == (output.batch, 0.1, 0.2, 0.3)
    assert got.branches[0].values.tolist() == values.tolist() and got.branches[1].values.shape == (2,)
    assert got.branches[0].relations is not None and got.branches[0].relations.tolist() == relations.tolist()
