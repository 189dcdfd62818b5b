"""What the engine answered against what was recorded of one row. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.case_rows import Row
from server.core import Adapter, BranchOutput, SampleOutput
from server.errors import InvalidInput
from server.primitives import Task

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Recorded = tuple[int, str, Array, bool]  # branch, name, what was recorded, whether with the padding of its batch
PER_TOKEN = ("last_hidden_state", "start_logits", "end_logits")
PER_CHOICE = ("last_hidden_state", "pooler_output")
PER_WORD = ("arc_preds", "rel_preds")
_OWNED = re.compile(r"(row|head)(\d+)\.(.+)|rowwise\.(.+)")


def compare_row(row: Row, recorded: Arrays, outputs: Sequence[SampleOutput], tolerance: Mapping[str, float]) -> float:
    """Worst excess |got - recorded| / (atol + rtol |recorded|) over everything that is recorded of a row.

    outputs   one, or one per choice
    raises    InvalidInput where something recorded has no answer or one of another shape, or nothing is recorded
    """
    errors = []
    for branch, name, whole, is_padded in recorded_of(row, recorded):
        got = _answers(row, branch, outputs).get(name)
        if got is None:
            raise InvalidInput(f"{name} recorded, none answered")
        want = _trimmed(row, name, whole, got) if is_padded else whole
        if got.shape != want.shape:
            raise InvalidInput(f"{name} recorded as {list(want.shape)}, answered as {list(got.shape)}")
        excess = np.abs(got - want) / (tolerance["atol"] + tolerance["rtol"] * np.abs(want))
        errors.append(float(np.max(excess, initial=0.0)))  # NaN stays NaN
    if not errors:
        raise InvalidInput(f"nothing is recorded of row {row.number}")
    return worst(errors)


def worst(errors: Iterable[float]) -> float:
    """The largest, NaN above all; 0 of none."""
    return max(errors, key=lambda error: (math.isnan(error), error), default=0.0)


def recorded_of(row: Row, recorded: Arrays) -> Iterator[Recorded]:
    """What is recorded of one row, under `name@choice` for single choices.

    What was recorded for the row alone wins over the batch's own answer, and so does what each row gave by itself.
    """
    names: dict[str, None] = {}
    for key in recorded:
        owned = _OWNED.fullmatch(key)
        if owned is None:
            names[key] = None
        elif owned[4] or (owned[1] == "row" and int(owned[2]) == row.number):
            names[owned[4] or owned[3]] = None
        elif owned[1] == "head":
            yield from _of_head(row, int(owned[2]), owned[3], recorded[key])
    for name in names:
        yield from _of_name(row, name, recorded)


def _of_name(row: Row, name: str, recorded: Arrays) -> Iterator[Recorded]:
    num_branches, num_choices = len(row.target.branches), len(row.encodings)
    if (alone := recorded.get(f"row{row.number}.{name}")) is not None:
        yield 0, name, alone[0], False
    elif (rowwise := recorded.get(f"rowwise.{name}")) is not None:
        yield 0, name, rowwise[row.number], True
    elif name in PER_CHOICE and num_choices > 1:
        for choice in range(num_choices):
            yield 0, f"{name}@{choice}", recorded[name][row.number * num_choices + choice], True
    elif name == "logits" and num_choices > 1 and len(recorded[name]) != row.num_rows:
        per_choice = recorded[name].reshape(row.num_rows * num_choices, -1)  # the library lines all tokens up in pairs
        for choice in range(num_choices):
            yield 0, f"{name}@{choice}", per_choice[row.number * num_choices + choice], True
    elif num_branches > 1 and len(recorded[name]) == num_branches * row.num_rows:
        for branch in range(num_branches):
            yield branch, name, recorded[name][branch * row.num_rows + row.number], True
    else:
        yield 0, name, recorded[name][row.number], True


def _of_head(row: Row, number: int, name: str, whole: Array) -> Iterator[Recorded]:
    """One of several heads: a branch of the row, or what the rows of one child were routed to."""
    if row.place is None:
        yield number, name, whole[row.number], True
    elif row.place[0] == number:
        yield 0, name, whole[row.place[1]], True


def _trimmed(row: Row, name: str, whole: Array, got: Array) -> Array:
    """Without the padding of the recorded batch; a prompt's tokens, in front, are not under its mask."""
    plain, _, choice = name.partition("@")
    if plain in PER_WORD:
        return whole[: got.shape[0], : got.shape[1]]
    is_per_token = plain in PER_TOKEN or got.ndim == 2 or (plain == "logits" and choice)
    if not whole.ndim or not is_per_token:
        return whole
    kept = row.kept[int(choice or 0)]
    return whole[kept] if len(whole) == len(kept) else whole[: len(got)]


def _answers(row: Row, branch: int, outputs: Sequence[SampleOutput]) -> Arrays:
    """What the engine gave for one branch of a row, under the names that recorded cases use."""
    own = [output.branches[branch] for output in outputs]
    answers = hidden_outputs(own[0])
    if len(own) > 1:
        answers = {
            f"{name}@{i}": value for i, output in enumerate(own) for name, value in hidden_outputs(output).items()
        }
    head = row.target.branches[branch].head
    return answers if head is None else answers | head_outputs(row.target.parts[head[0]], head[1], own)


def hidden_outputs(output: BranchOutput) -> dict[str, Array]:
    """Token vectors and pooler output under the names that recorded cases use."""
    assert output.hidden is not None, "asked for without hidden states"
    answers: dict[str, Array] = {"last_hidden_state": output.hidden}
    return answers if output.pooler is None else answers | {"pooler_output": output.pooler}


def head_outputs(adapter: Adapter, number: int, outputs: Sequence[BranchOutput]) -> dict[str, Array]:
    """A head's answers under the names that recorded cases use; several outputs are the choices of one question."""
    task, values = adapter.spec.all_heads[number].task, outputs[0].values
    if task is Task.QUESTION_ANSWERING:
        return {"start_logits": values[:, 0], "end_logits": values[:, 1]}
    if task is Task.DEPENDENCY_PARSING:
        assert outputs[0].relations is not None
        return {"arc_preds": values, "rel_preds": outputs[0].relations}
    if task is Task.MULTIPLE_CHOICE and values.ndim == 2:  # a score per token, as DeBERTa's missing pooler has it
        return {f"logits@{i}": output.values[:, 0] for i, output in enumerate(outputs)}
    if task is Task.MULTIPLE_CHOICE:
        return {"logits": np.concatenate([output.values for output in outputs])}
    return {"logits": values}
