"""The plain second implementation answers the recorded cases of its two families by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import Outputs, Plain, Tree
from plain_files import read_adapter, read_base, read_fusion
from recorded import CONFORMANCE, cases, manifest
from safetensors.torch import load_file
from torch import Tensor

OURS = [case for case in cases() if manifest()["bases"][case["base"]]["model_type"] in ("bert", "roberta")]
TOKEN_OUTPUTS = ("last_hidden_state", "start_logits", "end_logits")

pytestmark = pytest.mark.skipif(not OURS, reason="the recorded cases are not here")


@pytest.mark.parametrize("case", OURS, ids=lambda case: case["id"])
def test_plain_implementation_gives_what_was_recorded(case: dict[str, Any]) -> None:
    inputs, recorded = load_file(CONFORMANCE / case["inputs"]), load_file(CONFORMANCE / case["outputs"])
    plain, num_compared = _plain(case), 0
    for row in range(len(inputs["input_ids"])):
        for name, want, got in _compared(plain, case, inputs, recorded, row):
            want = want[tuple(slice(0, size) for size in got.shape)].double()
            torch.testing.assert_close(got, want, **case["tolerance"], msg=lambda text, name=name: f"{name}: {text}")
            num_compared += 1
    assert num_compared >= len(inputs["input_ids"])


def _plain(case: dict[str, Any]) -> Plain:
    adapters = {
        a.get("load_as") or a["name"]: read_adapter(CONFORMANCE / a["dir"], a.get("leave_out", ()))
        for a in case["adapters"]
    }
    fusions = {fusion["name"]: read_fusion(CONFORMANCE / fusion["dir"]) for fusion in case["fusions"]}
    for head in case["heads"]:
        adapters[head["name"]] = read_adapter(CONFORMANCE / head["dir"])
    if case.get("setup_dir"):
        folders = [path for path in (CONFORMANCE / case["setup_dir"]).iterdir() if path.is_dir()]
        adapters |= {path.name: read_adapter(path) for path in folders if (path / "adapter_config.json").exists()}
        fusions |= {path.name: read_fusion(path) for path in folders if (path / "adapter_fusion_config.json").exists()}
    return Plain(read_base(CONFORMANCE / case["base_dir"]), adapters, fusions)


def _compared(
    plain: Plain, case: dict[str, Any], inputs: dict[str, Tensor], recorded: dict[str, Tensor], row: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, what was recorded, what the plain implementation gives) of one row."""
    tree, num_rows = _routed(case["composition"], row, inputs), len(inputs["input_ids"])
    head, place = case["head"], None
    if isinstance(head, dict):
        place = _place(head, row)
        head = head["children"][place[0]]
    heads = head if isinstance(head, list) else [head]
    choices = _choices(plain, inputs, tree, heads, case.get("skip_layers") or (), row)
    for branch, outputs in enumerate(choices[0]):
        for name, value in outputs.items():
            if name == "logits" and value.shape == (1,) and inputs["input_ids"].ndim == 3:
                value = torch.cat([choice[branch]["logits"] for choice in choices])
            elif inputs["input_ids"].ndim == 3:
                continue
            own, number = (row, branch) if place is None else (place[1], place[0])
            if f"head{number}.{name}" in recorded:
                yield f"head{number}.{name}", recorded[f"head{number}.{name}"][own], value
            if f"row{row}.{name}" in recorded:
                yield name, recorded[f"row{row}.{name}"][0], value
            elif f"rowwise.{name}" in recorded:
                yield name, recorded[f"rowwise.{name}"][row], value
            elif name in recorded:
                whole = recorded[name]
                yield name, whole[branch * num_rows + row if len(whole) > num_rows else row], value


def _choices(
    plain: Plain, inputs: dict[str, Tensor], tree: Tree, heads: list[Any], skipped: Any, row: int
) -> list[list[Outputs]]:
    ids, mask = inputs["input_ids"][row], inputs["attention_mask"][row].bool()
    types = inputs["token_type_ids"][row] if "token_type_ids" in inputs else torch.zeros_like(ids)
    ids, mask, types = (x.reshape(-1, ids.shape[-1]) for x in (ids, mask, types))
    starts: list[int] = []
    if "word_starts" in inputs:  # the library drops the starts that equal the padding id
        starts = [s for s in inputs["word_starts"][row].tolist() if s != plain.base.config["pad_token_id"]]
    return [
        plain.run(a[m].tolist(), t[m].tolist(), tree, heads, skipped, starts)
        for a, m, t in zip(ids, mask, types, strict=True)
    ]


def _place(split: Tree, row: int) -> tuple[int, int]:
    for child, size in enumerate(split["batch_sizes"]):
        if row < size:
            return child, row
        row -= size
    raise AssertionError(row)


def _routed(tree: Tree, row: int, inputs: dict[str, Tensor]) -> Tree:
    """The tree of one row: blocks that cut the batch give way to the row's own child."""
    if not isinstance(tree, dict):
        return tree
    if tree["type"] == "BatchSplit":
        return tree["children"][_place(tree, row)[0]]
    if tree["type"] == "MultiTask":
        return tree["children"][int(inputs["task_ids"][row])]
    return {**tree, "children": [_routed(child, row, inputs) for child in tree["children"]]}


def test_case_files_are_read_without_the_packages_under_test() -> None:
    for name in ("plain.py", "plain_files.py", "plain_methods.py"):
        source = (Path(__file__).parents[2] / name).read_text()
        assert not any(package in source for package in ("import server", "from server", "adapters_cache"))
    assert json.loads((CONFORMANCE / "manifest.json").read_text())["cases"]
