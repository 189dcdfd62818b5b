"""Work and what came of it as tuples of numbers and bytes: pickling dataclasses and arrays takes the longer by far."""

from __future__ import annotations

import pickle
from array import array
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core import (
    BaseInfo,
    BatchInfo,
    BranchOutput,
    Encoding,
    Input,
    Parameters,
    Pooling,
    SampleOutput,
    TextInput,
    TokenInput,
)
from server.engine import Answerer, Computed, Work
from server.primitives import Head
from server.results import Question
from server.words import with_words

INT32 = "i"
NO_TEXT = TokenInput(())  # the engine reads ids; texts, offsets and tokens stay in the front

Wire = tuple[Any, ...]


def encode_work(work: Work, base: BaseInfo) -> Wire:
    parameters = (work.parameters.top_k, work.parameters.pooling.value)  # the rest is for reading and shaping
    questions = [_encode_question(question, base) for question in work.questions]
    routing = (work.heads, work.skip_layers, work.sticky_key, work.priority, work.tenant, work.version)
    return work.adapter, questions, parameters, work.deadline, *routing


def decode_work(adapter: str, questions: list[Wire], parameters: Wire, *rest: Any) -> Work:
    top_k, pooling = parameters
    read = Parameters(top_k=top_k, pooling=Pooling(pooling))
    return Work(adapter, tuple(_decode_question(*question) for question in questions), read, *rest)


def _encode_question(question: Question, base: BaseInfo) -> Wire:
    source = question.source
    num_choices = len(source.choices) if isinstance(source, TextInput) else 0
    return num_choices, [_encode_encoding(encoding, base) for encoding in question.encodings]


def _decode_question(num_choices: int, encodings: list[Wire]) -> Question:
    source: Input = TextInput("", choices=("",) * num_choices) if num_choices else NO_TEXT
    return Question(source, tuple(_decode_encoding(*encoding) for encoding in encodings))


def _encode_encoding(encoding: Encoding, base: BaseInfo) -> Wire:
    """Words are found here, where the processes are many; whether a parser will ask is not known yet."""
    types = array(INT32, encoding.token_type_ids).tobytes() if any(encoding.token_type_ids) else b""
    words = with_words(encoding, base.pad_token_id).word_starts if encoding.segments else ()
    return array(INT32, encoding.input_ids).tobytes(), types, array(INT32, words).tobytes()


def _decode_encoding(ids: bytes, types: bytes, words: bytes) -> Encoding:
    input_ids = tuple(array(INT32, ids))
    type_ids = tuple(array(INT32, types)) if types else (0,) * len(input_ids)
    return Encoding(input_ids, type_ids, NO_TEXT, word_starts=tuple(array(INT32, words)))


def encode_computed(computed: Computed) -> Wire:
    outputs = [_encode_output(output) for output in computed.outputs]
    return _pickled(computed.answerer), outputs, computed.ready_s


def encode_answerer(answerer: Answerer) -> bytes:
    return _pickled(answerer)


def decode_answerer(data: bytes) -> Answerer:
    return _unpickled(data)


def decode_computed(answerer: bytes, outputs: list[Wire], ready_s: float) -> Computed:
    return Computed(_unpickled(answerer), tuple(_decode_output(*output) for output in outputs), ready_s)


@lru_cache(maxsize=4096)
def _pickled(answerer: Answerer) -> bytes:
    """Once per answerer, which is told apart by identity."""
    heads = tuple(None if head is None else _without_weights(head) for head in answerer.heads)
    return pickle.dumps((answerer.digest, answerer.names, heads), protocol=5)


@lru_cache(maxsize=4096)
def _unpickled(data: bytes) -> Answerer:
    return Answerer(*pickle.loads(data))


def _without_weights(head: Head) -> Head:
    return replace(head, layers=(), biaffine=None)


def _encode_output(output: SampleOutput) -> Wire:
    batch = output.batch
    facts = (batch.id, batch.num_samples, batch.num_tokens, batch.num_adapters)
    branches = [
        (_encode_array(branch.values), None if branch.relations is None else _encode_array(branch.relations))
        for branch in output.branches
    ]
    return branches, facts, output.queue_s, output.compute_s


def _decode_output(branches: list[Wire], facts: Wire, queue_s: float, compute_s: float) -> SampleOutput:
    decoded = tuple(
        BranchOutput(_decode_array(*values), None if relations is None else _decode_array(*relations))
        for values, relations in branches
    )
    return SampleOutput(decoded, BatchInfo(*facts), queue_s, compute_s)


def _encode_array(values: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    return values.shape, values.tobytes()


def _decode_array(shape: tuple[int, ...], data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, np.float32).reshape(shape)
