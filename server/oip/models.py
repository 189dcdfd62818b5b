"""What the protocol tells of a model: its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.oip.answers import EMBEDDING, LABELS, LOGITS, RESULT, SCORES, VALUES, outputs_of
from server.oip.requests import ATTENTION_MASK, CHOICES, INPUT_IDS, TEXT, TEXT_PAIR, TOKEN_TYPE_IDS
from server.oip.tensors import BYTES
from server.primitives import Head, Task

PLATFORM = "adapterd"
MATRIX = (-1, -1)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """-1 in a shape: it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_optional: bool = False


KINDS: dict[Task, str] = {task: task.value for task in Task} | {Task.DEPENDENCY_PARSING: "dependencies"}
OPTIONAL = (
    TensorSpec(TEXT_PAIR, BYTES, (-1,), is_optional=True),
    TensorSpec(INPUT_IDS, "INT64", MATRIX, is_optional=True),
    TensorSpec(ATTENTION_MASK, "INT64", MATRIX, is_optional=True),
    TensorSpec(TOKEN_TYPE_IDS, "INT64", MATRIX, is_optional=True),
)
NUMBERS = (EMBEDDING, SCORES, VALUES)


def inputs_of(heads: Sequence[Head | None]) -> tuple[TensorSpec, ...]:
    text = TensorSpec(TEXT, BYTES, (-1,))
    if heads[0] is not None and heads[0].task is Task.MULTIPLE_CHOICE:
        return (text, TensorSpec(CHOICES, BYTES, MATRIX))
    return (text, *OPTIONAL)


def specs_of(heads: Sequence[Head | None], hidden_size: int) -> tuple[TensorSpec, ...]:
    """Outputs of a model with these heads, one for each of its results; None gives an embedding."""
    if len(heads) > 1:
        return (TensorSpec(RESULT, BYTES, (-1,)),)
    head = heads[0]
    if head is not None and head.task is Task.CAUSAL_LM:
        return ()  # it is not answered
    kind = KINDS[head.task if head is not None else Task.EMBEDDING]
    return tuple(_spec(name, head, hidden_size) for name in outputs_of(kind))


def _spec(name: str, head: Head | None, hidden_size: int) -> TensorSpec:
    if name in NUMBERS:
        return TensorSpec(name, "FP32", (-1, hidden_size) if name == EMBEDDING else MATRIX)
    if name == LOGITS:
        rank = 2 if head is None or not head.reads_tokens else 3
        return TensorSpec(name, "FP32", (-1,) * rank)
    return TensorSpec(name, BYTES, MATRIX if name == LABELS else (-1,))
