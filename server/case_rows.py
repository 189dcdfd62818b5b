"""The rows of a recorded case: its adapters, fusions and heads read, its composition resolved for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.formats.fusions import read_fusion
from adapters_cache.formats.setups import read_setup
from adapters_cache.targets import make_target
from adapters_cache.trees import node_of
from server.cases import Case, read_arrays
from server.composition import (
    check_nesting,
)
from server.core import Adapter, Encoding, Target, TokenInput, target_of
from server.errors import InvalidInput
from server.model.base import Base

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a case.

    encodings   one, or one per choice
    kept        [padded length] of each: which positions of the recorded batch are this row's tokens
    place       of a case whose rows are routed to different children: which child, and which row of it
    """

    number: int
    num_rows: int
    target: Target
    encodings: tuple[Encoding, ...]
    kept: tuple[NDArray[np.bool_], ...]
    place: tuple[int, int] | None


def read_rows(root: Path, base: Base, case: Case) -> list[Row]:
    """Every row with its own target. Raises UnsupportedConfig, and what reading an adapter raises."""
    inputs = read_arrays(root, case["inputs"], "input_ids", "attention_mask")
    parts = _Parts(root, base, case)
    num_rows = len(inputs["input_ids"])
    tasks = inputs["task_ids"].tolist() if "task_ids" in inputs else None
    return [
        Row(
            number=number,
            num_rows=num_rows,
            target=parts.target(number, num_rows, tasks),
            encodings=tuple(_encodings(inputs, number, base)),
            kept=tuple(_kept(inputs, number)),
            place=_place(case["head"], number),
        )
        for number in range(num_rows)
    ]


class _Parts:
    """What a case loads, by name."""

    def __init__(self, root: Path, base: Base, case: Case) -> None:
        self._case = case
        adapters = {a.get("load_as") or a["name"]: (root / a["dir"], a.get("leave_out", ())) for a in case["adapters"]}
        fusions = {fusion["name"]: root / fusion["dir"] for fusion in case["fusions"]}
        if case.get("setup_dir"):
            setup = read_setup(root / case["setup_dir"])
            adapters |= {name: (path, ()) for name, path in setup.adapters.items()}
            fusions |= setup.fusions
        self._adapters: dict[str, Adapter] = {}
        for name, (path, leave_out) in adapters.items():
            self._adapters[name] = _build(read_checkpoint(path, name=name, leave_out=leave_out), base, name)
        for head in case["heads"]:
            checkpoint = replace(read_checkpoint(root / head["dir"], name=head["name"]), config=None, tensors={})
            self._adapters.setdefault(head["name"], _build(checkpoint, base, head["name"]))
        self._fusions = {name: _build(read_fusion(path), base, name) for name, path in fusions.items()}

    def target(self, row: int, num_rows: int, tasks: Sequence[int] | None) -> Target:
        composition, heads = self._case["composition"], _names(_at(self._case["head"], row, num_rows, tasks))
        skipped = self._case.get("skip_layers") or ()
        if composition is None:
            return target_of(self._adapters[heads[0]] if heads else None)
        tree = node_of(_at(composition, row, num_rows, tasks))
        check_nesting(tree)
        return make_target(tree, self._adapters, self._fusions, heads, skipped)


def _build(checkpoint: Any, base: Base, name: str) -> Adapter:
    return build_adapter(checkpoint, base.info, base.dtype, name=name, weights=base)


def _names(head: Any) -> tuple[str, ...]:
    if head is None:
        return ()
    return (head,) if isinstance(head, str) else tuple(head)


def _at(tree: Any, row: int, num_rows: int, tasks: Sequence[int] | None) -> Any:
    """The tree of one row: BatchSplit and MultiTask give way to the child that the row goes to."""
    if not isinstance(tree, dict):
        return tree
    children = tree["children"]
    if tree["type"] == "BatchSplit":
        child, inner = _split_place(tree, row, num_rows)
        return _at(children[child], inner, tree["batch_sizes"][child] if _sizes(tree) else num_rows, tasks)
    if tree["type"] == "MultiTask":
        assert tasks is not None, "a MultiTask case records task_ids"
        return _at(children[tasks[row]], row, num_rows, tasks)
    return {**tree, "children": [_at(child, row, num_rows, tasks) for child in children]}


def _sizes(tree: Mapping[str, Any]) -> bool:
    return isinstance(tree["batch_sizes"], list)


def _split_place(tree: Mapping[str, Any], row: int, num_rows: int) -> tuple[int, int]:
    sizes = tree["batch_sizes"]
    sizes = sizes if isinstance(sizes, list) else [sizes] * len(tree["children"])
    for child, size in enumerate(sizes):
        if row < size:
            return child, row
        row -= size
    raise InvalidInput(f"batch_sizes {sizes} do not add up to the {num_rows} rows of the case")


def _place(head: Any, row: int) -> tuple[int, int] | None:
    return _split_place(head, row, row + 1) if isinstance(head, dict) and head["type"] == "BatchSplit" else None


def _kept(inputs: Mapping[str, Array], row: int) -> NDArray[np.bool_]:
    """[choices, padded length]"""
    mask = inputs["attention_mask"][row]
    kept: NDArray[np.bool_] = mask.reshape(-1, mask.shape[-1]).astype(bool)
    return kept


def _encodings(inputs: Mapping[str, Array], row: int, base: Base) -> Iterator[Encoding]:
    """One per choice; [rows, length] inputs have one."""
    mask = _kept(inputs, row)
    ids = inputs["input_ids"][row].reshape(mask.shape)
    types = inputs["token_type_ids"][row].reshape(ids.shape) if "token_type_ids" in inputs else np.zeros_like(ids)
    starts: tuple[int, ...] = ()
    if "word_starts" in inputs:  # the library drops starts that equal the padding id
        starts = tuple(start for start in inputs["word_starts"][row].tolist() if start != base.info.pad_token_id)
    for own_ids, own_mask, own_types in zip(ids, mask, types, strict=True):
        kept = tuple(own_ids[own_mask].tolist())
        yield Encoding(kept, tuple(own_types[own_mask].tolist()), TokenInput(kept), word_starts=starts)
