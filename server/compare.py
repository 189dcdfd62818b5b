"""What the engine answered against what was recorded of one row. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core import Adapter, SampleOutput
from server.errors import InvalidInput
from server.primitives import Task

Arrays = Mapping[str, NDArray[Any]]
PER_TOKEN = ("last_hidden_state", "start_logits", "end_logits")


def row_outputs(adapter: Adapter | None, output: SampleOutput) -> Arrays:
    """Everything a row was answered, under the names that recorded cases use."""
    assert output.hidden is not None, "asked for without hidden states"
    answers = {"last_hidden_state": output.hidden}
    if output.pooler is not None:
        answers["pooler_output"] = output.pooler
    if adapter is None or adapter.spec.head is None:
        return answers
    if adapter.spec.task is Task.QUESTION_ANSWERING:
        return answers | {"start_logits": output.values[:, 0], "end_logits": output.values[:, 1]}
    return answers | {"logits": output.values}


def compare_row(
    recorded: Arrays, row: int, kept: NDArray[np.bool_], answers: Arrays, tolerance: Mapping[str, float]
) -> float:
    """Worst excess |got - recorded| / (atol + rtol |recorded|) over everything that is recorded of a row.

    kept     [padded length]: the positions of the recorded batch that are this row's tokens
    raises   InvalidInput where something recorded has no answer or one of another shape, or nothing is recorded
    """
    names = _names(recorded, row)
    if not names:
        raise InvalidInput(f"nothing is recorded of row {row}")
    errors = []
    for name in names:
        if name not in answers:
            raise InvalidInput(f"{name} recorded, none answered")
        got, want = answers[name], _recorded(recorded, row, name, kept, answers[name].ndim)
        if got.shape != want.shape:
            raise InvalidInput(f"{name} recorded as {list(want.shape)}, answered as {list(got.shape)}")
        excess = np.abs(got - want) / (tolerance["atol"] + tolerance["rtol"] * np.abs(want))
        errors.append(float(np.max(excess, initial=0.0)))  # NaN stays NaN
    return worst(errors)


def worst(errors: Iterable[float]) -> float:
    """The largest, NaN above all; 0 of none."""
    return max(errors, key=lambda error: (math.isnan(error), error), default=0.0)


def _names(recorded: Arrays, row: int) -> list[str]:
    """What is recorded of a row, in the batch or alone. What is not marked as another row's counts for every row."""
    names: dict[str, None] = {}
    for key in recorded:
        owner, dot, name = key.partition(".")
        if not (dot and owner.startswith("row") and owner[3:].isdigit()):
            names[key] = None
        elif int(owner[3:]) == row:
            names[name] = None
    return list(names)


def _recorded(recorded: Arrays, row: int, name: str, kept: NDArray[np.bool_], ndim: int) -> NDArray[Any]:
    """The row run alone if there is that, else its part of the batch without padding."""
    alone = recorded.get(f"row{row}.{name}")
    if alone is not None:
        return alone[0]  # type: ignore[no-any-return]
    want: NDArray[Any] = recorded[name][row]
    return want[kept] if name in PER_TOKEN or ndim == 2 else want
