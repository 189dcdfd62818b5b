"""What a `PredictResponse` holds, as tensors of the protocol.

Numbers and labels are tensors of their own. What has parts (entities, answers, choices, masks, words) is JSON, one text
per input, with the names of the messages in inference.proto; `result` is the whole answer of an input so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from adapterd.v1 import inference_pb2 as v1
from server.errors import InvalidInput
from server.oip.tensors import BYTES, Tensor

EMBEDDING, LABELS, SCORES, VALUES, LOGITS, RESULT = "embedding", "labels", "scores", "values", "logits", "result"

Results = Sequence[v1.Result]

# By kind of result: the outputs of its own. A `Parallel` has several results, and `result` only.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "embedding": (EMBEDDING,),
    "classification": (LABELS, SCORES),
    "multi_label": (LABELS, SCORES),
    "regression": (VALUES,),
    "token_classification": ("entities",),
    "question_answering": ("answers",),
    "multiple_choice": ("choices",),
    "fill_mask": ("masks",),
    "dependencies": ("words",),
    "parallel": (),
}


def outputs_of(kind: str) -> tuple[str, ...]:
    """Names of all outputs of such results."""
    return (*OUTPUTS[kind], RESULT) if kind == "parallel" else (*OUTPUTS[kind], LOGITS, RESULT)


def to_tensors(response: v1.PredictResponse, wanted: Sequence[str] = ()) -> list[Tensor]:
    """The outputs that were asked for, or those of the result's kind. Raises InvalidInput for what it does not have."""
    results = response.results
    kind = results[0].WhichOneof("result") or "parallel"
    known = outputs_of(kind)
    for name in wanted:
        if name not in known:
            raise InvalidInput(
                f"output {name[:64]!r} is not one of {', '.join(known)}, which {response.adapter[:128]!r} gives"
            )
    return [_tensor(name, kind, results) for name in wanted or OUTPUTS[kind] or (RESULT,)]


def _tensor(name: str, kind: str, results: Results) -> Tensor:
    if name == RESULT:
        return _texts(name, [_dict(result) for result in results])
    if name in MAKERS:
        return MAKERS[name](kind, results)
    return _texts(name, [[_dict(part) for part in getattr(getattr(result, kind), name)] for result in results])


def _embedding(kind: str, results: Results) -> Tensor:
    return _floats(EMBEDDING, [result.embedding.values for result in results])


def _values(kind: str, results: Results) -> Tensor:
    return _floats(VALUES, [result.regression.values for result in results])


def _logits(kind: str, results: Results) -> Tensor:
    shapes = {tuple(result.logits.shape) for result in results}
    if len(shapes) > 1:
        raise InvalidInput(
            f"logits of {len(results)} inputs have {len(shapes)} shapes, one for each length; send one input at a time"
        )
    rows = np.stack([np.array(result.logits.values, np.float32) for result in results])
    return Tensor(LOGITS, "FP32", (len(results), *shapes.pop()), rows.ravel())


def _labels(kind: str, results: Results) -> Tensor:
    """Rows that hold fewer labels than the longest are filled with empty ones."""
    rows = [[item.label.encode() for item in getattr(result, kind).labels] for result in results]
    width = max(map(len, rows))
    filled = [label for row in rows for label in (*row, *[b""] * (width - len(row)))]
    return Tensor(LABELS, BYTES, (len(rows), width), filled)


def _scores(kind: str, results: Results) -> Tensor:
    rows = [[item.score for item in getattr(result, kind).labels] for result in results]
    width = max(map(len, rows))
    filled = np.zeros((len(rows), width), np.float32)
    for row, scores in zip(filled, rows, strict=True):
        row[: len(scores)] = scores
    return Tensor(SCORES, "FP32", filled.shape, filled.ravel())


MAKERS: dict[str, Callable[[str, Results], Tensor]] = {
    EMBEDDING: _embedding,
    VALUES: _values,
    LOGITS: _logits,
    LABELS: _labels,
    SCORES: _scores,
}


def _floats(name: str, rows: Sequence[Sequence[float]]) -> Tensor:
    array = np.array([np.array(row, np.float32) for row in rows])
    return Tensor(name, "FP32", array.shape, array.ravel())


def _texts(name: str, values: Sequence[Any]) -> Tensor:
    return Tensor(name, BYTES, (len(values),), [json.dumps(value, ensure_ascii=False).encode() for value in values])


def _dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
