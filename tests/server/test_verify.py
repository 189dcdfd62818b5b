"""Record cases on a tiny base, check them, and damage them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from fakes import make_adapter as make_fake_adapter
from fakes import make_encoding, make_spec
from make_adapters import HEADS, make_adapter, make_variant
from make_bases import MODELS, save_base
from make_tokenizer import save_tokenizer
from safetensors.numpy import load_file
from transformers import RobertaForMaskedLM
from typer.testing import CliRunner, Result

from server.case_rows import Row
from server.cli import app as command_line
from server.compare import compare_row, worst
from server.config import ModelConfig
from server.core import BatchInfo, BranchOutput, SampleOutput, target_of
from server.errors import InvalidInput
from server.metrics import Metrics
from server.model.base import load_base
from server.primitives import Task
from server.verify import Outcome, check

MODEL = ModelConfig(device="cpu", num_threads=1)
FOLDER = Path(os.environ.get("ADAPTERD_CONFORMANCE", Path(__file__).parents[2].parent / "shared" / "conformance"))
NUM_ADAPTERS = 8
QA, NO_HEAD = "adapter6", "adapter0"


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_base(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="module")
def adapters_path(base_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, base = tmp_path_factory.mktemp("adapters"), load_base(ModelConfig(base=str(base_path), device="cpu")).info
    for index in range(NUM_ADAPTERS - 1):
        make_adapter(
            folder / f"adapter{index}", base, config="seq_bn[reduction_factor=4]", head=HEADS[index], seed=index
        )
    make_variant(folder / f"adapter{NUM_ADAPTERS - 1}", base, 4)
    return folder


@pytest.fixture(scope="module")
def recorded(base_path: Path, adapters_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded") / "cases"
    done = verify(root, "--record", "--base", base_path, "--adapters", adapters_path)
    assert done.exit_code == 0 and f"recorded {NUM_ADAPTERS + 1} cases" in done.output
    return root


@pytest.fixture
def cases(recorded: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(recorded, tmp_path / "cases"))


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(command_line, ["verify", *map(str, arguments), "--device", "cpu"], env={"COLUMNS": "300"})


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file, or the tensors of a safetensors file, in place."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))
        return
    arrays = load_file(path)
    edit(arrays)
    safetensors.numpy.save_file(arrays, path)


def failed(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.case["id"].removeprefix("tiny/"): outcome.reason for outcome in outcomes if outcome.is_failed}


@pytest.mark.parametrize("mixed", [[], ["--mixed", "--seed", "3"]])
def test_what_was_recorded_passes(recorded: Path, mixed: list[str]) -> None:
    done = verify(recorded, *mixed)
    assert done.exit_code == 0 and f"{NUM_ADAPTERS + 1} passed, 0 failed, 0 unsupported" in done.output


def test_outcomes_are_a_document_too(cases: Path, adapters_path: Path, base_path: Path, tmp_path: Path) -> None:
    change(cases / f"outputs/{QA}.safetensors", lambda arrays: arrays.update(answers_of(arrays, 1.0)))
    done = verify(cases, "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 1 and (facts["num_passed"], facts["num_failed"]) == (NUM_ADAPTERS, 1)
    [broken] = [case for case in facts["cases"] if case["outcome"] == "failed"]
    assert broken["id"] == f"tiny/{QA}" and broken["error"] > 1

    own = ("--base", base_path, "--adapters", adapters_path, "--json")
    proven = json.loads(verify("--adapter", NO_HEAD, *own).stdout)
    assert proven["adapter"] == NO_HEAD and proven["difference"] <= proven["tolerance"]
    recorded = json.loads(verify(tmp_path / "new", "--record", *own).stdout)
    assert recorded == {"directory": str(tmp_path / "new"), "num_cases": NUM_ADAPTERS + 1, "left_out": {}}


def answers_of(arrays: Any, more: float) -> dict[str, Any]:
    """All of a case's outputs, each off by so much."""
    return {name: array + np.float32(more) for name, array in arrays.items()}


def test_mixing_evicts_adapters_and_loads_them_again(recorded: Path) -> None:
    num_evicted, num_placed = {}, {}
    for mixed in (False, True):
        metrics = Metrics()
        assert not failed(check(recorded, MODEL, mixed=mixed, metrics=metrics))
        num_evicted[mixed] = metrics.registry.get_sample_value("adapterd_evictions_total", {"tier": "device"})
        num_placed[mixed] = metrics.registry.get_sample_value("adapterd_misses_total", {"tier": "device"})
    assert num_evicted[False] == 0 and num_placed[False] == NUM_ADAPTERS
    assert num_evicted[True] and num_placed[True] and num_placed[True] > NUM_ADAPTERS


def test_recorded_is_everything_that_is_answered(recorded: Path) -> None:
    [spans, plain] = [load_file(recorded / f"outputs/{name}.safetensors") for name in (QA, NO_HEAD)]
    common = {"row0.last_hidden_state", "row0.pooler_output"}
    assert {name for name in spans if name.startswith("row0.")} == common | {"row0.start_logits", "row0.end_logits"}
    assert {name for name in plain if name.startswith("row0.")} == common


@pytest.mark.parametrize("mixed", [[], ["--mixed"]])
def test_changed_weight_is_exit_1_and_named(cases: Path, mixed: list[str]) -> None:
    def move(arrays: dict[str, Any]) -> None:
        arrays[next(name for name in arrays if "adapter_up.weight" in name)][0, 0] += 0.5

    change(cases / "adapters" / QA / "adapter.safetensors", move)
    done = verify(cases, *mixed)
    assert done.exit_code == 1 and re.search(rf"^failed: tiny/{QA}: error \S+ x tolerance", done.output, re.MULTILINE)
    assert f"{NUM_ADAPTERS} passed, 1 failed" in done.output


def test_removed_head_is_exit_1_and_named(cases: Path) -> None:
    for path in (cases / "adapters" / QA).glob("*head*"):
        path.unlink()
    done = verify(cases)
    assert done.exit_code == 1 and f"failed: tiny/{QA}: no head '{QA}'" in done.output
    change(cases / "manifest.json", lambda value: [case.update(head=None) for case in value["cases"]])
    [(name, reason)] = failed(check(cases, MODEL)).items()
    assert name == QA and re.fullmatch("(start|end)_logits recorded, none answered", reason)


@pytest.mark.parametrize("name", ["surplus", "row1.surplus", "rowwise.surplus"])
def test_recorded_tensor_that_nothing_answers_fails(cases: Path, name: str) -> None:
    change(cases / f"outputs/{NO_HEAD}.safetensors", lambda arrays: arrays.update({name: np.zeros((5, 3), np.float32)}))
    assert failed(check(cases, MODEL)) == {NO_HEAD: f"{name.rpartition('.')[2]} recorded, none answered"}


def test_pooler_recorded_for_a_base_that_has_none_fails(cases: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    RobertaForMaskedLM(MODELS["roberta"][1]).save_pretrained(tmp_path / "bare")
    change(
        cases / "manifest.json", lambda value: [case.update(base_dir=str(tmp_path / "bare")) for case in value["cases"]]
    )
    assert failed(check(cases, MODEL))["base"] == "pooler_output recorded, none answered"


def test_shape_that_is_another_is_a_reason(cases: Path) -> None:
    def cut(arrays: dict[str, Any]) -> None:
        arrays["row2.pooler_output"] = arrays["row2.pooler_output"][:, :1]

    change(cases / f"outputs/{NO_HEAD}.safetensors", cut)
    assert failed(check(cases, MODEL)) == {NO_HEAD: "pooler_output recorded as [1], answered as [32]"}


def test_case_without_anything_recorded_fails(cases: Path) -> None:
    change(
        cases / f"outputs/{NO_HEAD}.safetensors", lambda arrays: [arrays.pop(n) for n in list(arrays) if "row4." in n]
    )
    assert failed(check(cases, MODEL)) == {NO_HEAD: "nothing is recorded of row 4"}


def test_missing_file_fails_its_case_alone(cases: Path) -> None:
    (cases / f"outputs/{QA}.safetensors").unlink()
    change(cases / "manifest.json", lambda value: value["cases"][1].update(inputs="gone.safetensors"))
    assert failed(check(cases, MODEL)) == {
        QA: f"outputs/{QA}.safetensors cannot be read",
        NO_HEAD: "gone.safetensors cannot be read",
    }


def test_unsupported_case_shows_its_reason_and_fails_nothing(cases: Path) -> None:
    change(
        cases / "manifest.json", lambda value: value["cases"][1].update(composition={"type": "Pile", "children": ["a"]})
    )
    done = verify(cases)
    assert done.exit_code == 0 and f"{NUM_ADAPTERS} passed, 0 failed, 1 unsupported" in done.output
    assert f"unsupported: tiny/{NO_HEAD}: Pile routes the rows" in done.output


def test_case_may_name_a_head_alone(cases: Path) -> None:
    def move(value: dict[str, Any]) -> None:
        case = next(case for case in value["cases"] if case["composition"] == QA)
        case.update(heads=case["adapters"], adapters=[], composition=None)

    change(cases / "manifest.json", move)
    assert failed(check(cases, MODEL)) == {QA: ""}  # answered, and differs: the adapter is left out


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_tolerance_that_is_none_is_refused(recorded: Path, value: str) -> None:
    done = verify(recorded, "--tolerance", value)
    assert done.exit_code == 2 and "adapterd: tolerance" in done.output


def test_unknown_device_is_refused(recorded: Path) -> None:
    done = CliRunner().invoke(command_line, ["verify", str(recorded), "--device", "gpu0"])
    assert done.exit_code == 2 and "device 'gpu0' is not one of" in done.output


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda value: value.pop("cases"), "no list of cases"),
        (lambda value: value["cases"].clear(), "lists no cases"),
        (lambda value: value.update(format=2), "format 2, expected 1"),
        (lambda value: value["cases"][2].pop("outputs"), "case 3 .* lacks outputs"),
        (lambda value: value["cases"][2].update(tolerance={"atol": 1e-5}), "atol and rtol"),
        (lambda value: value["cases"][2].update(adapters=[{}]), "without name and dir"),
    ],
)
def test_incomplete_manifest_is_told(cases: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    change(cases / "manifest.json", edit)
    done = verify(cases)
    assert done.exit_code == 2 and re.search(message, done.output) and "Traceback" not in done.output


def test_cases_need_no_tags(cases: Path) -> None:
    change(
        cases / "manifest.json",
        lambda value: [[case.pop(n) for n in ("tags", "methods", "base")] for case in value["cases"]],
    )
    assert verify(cases).exit_code == 0
    with pytest.raises(InvalidInput, match="no case has the tag 'x'; tags here: none"):
        check(cases, MODEL, tag="x")


def test_nan_is_worse_than_any_number() -> None:
    assert np.isnan(worst([0.1, float("nan"), 5.0])) and worst([0.1, 5.0, 2.0]) == 5.0 and worst([]) == 0.0
    row, output = row_of([True, True]), output_of(hidden=[[1.0], [float("nan")]], logits=[1.0])
    recorded = {"last_hidden_state": np.ones((1, 2, 1)), "logits": np.ones((1, 1))}
    assert np.isnan(compare_row(row, recorded, [output], {"atol": 1.0, "rtol": 0.0}))
    assert Outcome({}, error=float("nan")).is_failed


def test_part_of_a_batch_is_compared_under_the_mask() -> None:
    recorded = {"last_hidden_state": np.array([[[9.0], [1.0], [2.0]]]), "logits": np.array([[4.0]])}
    row, output = row_of([False, True, True]), output_of(hidden=[[1.0], [2.0]], logits=[4.5])
    assert compare_row(row, recorded, [output], {"atol": 1.0, "rtol": 0.0}) == 0.5


def row_of(kept: list[bool]) -> Row:
    """Row 0 of 1 of an adapter with a classification head."""
    spec = make_spec(Task.CLASSIFICATION, ["a"])
    return Row(0, 1, target_of(make_fake_adapter("a", spec)), (make_encoding(sum(kept)),), (np.array(kept),), None)


def output_of(hidden: list[list[float]], logits: list[float]) -> SampleOutput:
    branch = BranchOutput(np.float32(logits), hidden=np.float32(hidden))
    return SampleOutput((branch,), BatchInfo(1, 1, 1, 1), 0.0, 0.0)


def test_options_that_do_not_apply_are_refused(recorded: Path, base_path: Path, adapters_path: Path) -> None:
    for arguments in (["--base", base_path], ["--adapters", adapters_path], ["--texts", "x"]):
        done = verify(recorded, *arguments)
        assert done.exit_code == 2 and f"{arguments[0]} cannot be used without --record" in done.output
    for option in ("--mixed", "--tag=x", "--tolerance=2", "--dtype=bfloat16"):
        done = verify(recorded.parent / "new", "--record", "--adapters", adapters_path, option)
        assert done.exit_code == 2 and f"{option.split('=')[0]} cannot be used with --record" in done.output


def test_recording_leaves_out_what_cannot_be_served_and_says_so(
    base_path: Path, adapters_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters_path, tmp_path / "adapters")
    (tmp_path / "adapters" / QA / "adapter.safetensors").write_bytes(b"")
    (tmp_path / "texts").write_text("ab cd\n\nef\n")
    options = ("--record", "--base", base_path, "--adapters", tmp_path / "adapters", "--texts", tmp_path / "texts")
    done = verify(tmp_path / "cases", *options)
    assert done.exit_code == 1 and re.search(rf"left out: {QA}: .*adapter.safetensors", done.output)
    assert verify(tmp_path / "cases").exit_code == 0
    assert load_file(tmp_path / "cases" / "inputs.safetensors")["attention_mask"].sum(axis=1).tolist() == [6, 4]


def test_recording_that_fails_leaves_nothing(base_path: Path, adapters_path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "adapter_config.json").write_text("{")
    (tmp_path / "blank").write_text("\n")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for root, adapters, texts, message in (
        ("new", tmp_path / "bad", None, "a: "),
        ("new", tmp_path / "absent", None, "is not a folder"),
        ("new", base_path, None, "holds no adapters"),
        ("used", adapters_path, None, "is in use"),
        ("new", adapters_path, tmp_path / "absent", "cannot be read"),
        ("new", adapters_path, tmp_path / "blank", "holds no text"),
    ):
        options = [*(["--texts", texts] if texts else []), "--base", base_path]
        done = verify(tmp_path / root, "--record", "--adapters", adapters, *options)
        assert done.exit_code == 2 and message in done.output and "Traceback" not in done.output
        assert sorted(tmp_path.rglob("*")) == before


def test_recording_that_breaks_off_leaves_nothing(
    base_path: Path, adapters_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.record.answer_alone", broken)
    verify(tmp_path / "cases", "--record", "--base", base_path, "--adapters", adapters_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no recorded cases beside the repository")
@pytest.mark.parametrize("mixed", [False, True])
def test_bottleneck_cases_of_the_library_pass(mixed: bool) -> None:
    outcomes = check(FOLDER, MODEL, tag="bottleneck", mixed=mixed)
    assert len(outcomes) > 50 and not failed(outcomes)
    assert not [outcome.case["id"] for outcome in outcomes if outcome.is_unsupported]
