"""The comparison of training: ours on a tiny base and a handful of texts, the other side made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from make_bases import save_lively_base
from make_tokenizer import save_tokenizer
from typer.testing import CliRunner

from loadtest import training
from loadtest.__main__ import app

FAKE = """
import json, sys
job = json.load(open(sys.argv[1]))
assert job["method"] == "seq_bn" and job["epochs"] == 1 and job["labels"] and job["train"] != job["test"]
json.dump([labels for _, labels in json.load(open(job["test"]))], open(job["output"], "w"))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six texts of each kind."""
    folder = tmp_path / "data"
    (folder / "sst2").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (folder / "sst2" / f"{split}.tsv").write_text("good film\t1\nbad film\t0\n" * 3)
        own = folder / "snips" / split
        own.mkdir(parents=True)
        (own / "seq.in").write_text("play good film\nbook a table\n" * 3)
        (own / "seq.out").write_text("O O B-film\nO O B-object\n" * 3)
        (own / "label").write_text("Play\nBook\n" * 3)
    return folder


@pytest.mark.slow  # it trains twice; what a side that fails says runs below
def test_both_are_trained_on_the_same_files_and_compared(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(FAKE)
    monkeypatch.setattr(training, "WORKER", worker)
    monkeypatch.setattr(training, "python_of", lambda *_: Path(sys.executable))
    base, output = save_tokenizer(save_lively_base(tmp_path / "base")), tmp_path / "report"
    options = ["training", "--data", str(data), "--base", str(base), "--seeds", "1", "--epochs", "1"]
    done = CliRunner().invoke(app, [*options, "--corpus", "sst2", "--corpus", "snips-slots", "--output", str(output)])
    assert done.exit_code == 0, done.output
    report = json.loads((output / "training.json").read_text())
    assert [(row["corpus"], row["contender"]) for row in report["rows"]] == [
        ("SST-2", "adapterd"),
        ("SST-2", "AdapterHub"),
        ("SNIPS slots", "adapterd"),
        ("SNIPS slots", "AdapterHub"),
    ]
    assert [row["scores"] for row in report["rows"][1::2]] == [[1.0], [1.0]]  # what was answered is gold
    assert all(0 <= row["scores"][0] <= 1 and row["seconds"][0] > 0 for row in report["rows"])
    assert len(report["figures"]) == 4
    assert "| SST-2 | adapterd | accuracy |" in (output / "training.md").read_text()


def test_a_side_that_fails_says_why(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit('out of luck')")
    monkeypatch.setattr(training, "WORKER", worker)
    monkeypatch.setattr(training, "python_of", lambda *_: Path(sys.executable))
    base = save_tokenizer(save_lively_base(tmp_path / "base"))
    options = ["--data", str(data), "--base", str(base), "--seeds", "1", "--epochs", "1", "--corpus", "sst2"]
    done = CliRunner().invoke(app, ["training", *options])
    assert done.exit_code == 1 and "out of luck" in done.output
