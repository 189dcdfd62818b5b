"""`adapterd train` from files to a folder that is served: as a whole, resumable, and with its report."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from make_bases import save_lively_base
from make_tokenizer import save_tokenizer
from typer.testing import CliRunner

from adapters_cache.formats.adapterhub import read_checkpoint
from server.cli import app
from server.errors import InvalidInput
from training.fit import TrainConfig
from training.run import Plan, train

QUICK = TrainConfig(epochs=6, learning_rate=1e-2, batch_size=16)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_lively_base(tmp_path_factory.mktemp("base")))


def rows(path: Path, num: int, seed: int) -> Path:
    """Texts that begin with an a are of one class, those with a b of the other."""
    rng = random.Random(seed)
    lines = ["text,label"]
    for _ in range(num):
        is_a = rng.random() < 0.5
        words = ["a" if is_a else "b", *(rng.choice("cde") for _ in range(rng.randint(2, 6)))]
        lines.append(f"{' '.join(words)},{'first' if is_a else 'second'}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def plan(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    data = tmp_path_factory.mktemp("data")
    return Plan(
        str(base),
        "text-classification",
        rows(data / "train.csv", 128, 0),
        rows(data / "dev.csv", 32, 1),
        rows(data / "test.csv", 64, 2),
        data / "unused" / "letters",
        "seq_bn[reduction_factor=4]",
        "cpu",
        (),
        QUICK,
    )


def quiet(step: int, steps: int, loss: float) -> None: ...


def test_a_run_ends_with_an_adapter_its_scores_and_pictures(plan: Plan, tmp_path: Path) -> None:
    seen = []
    trained = train(
        replace(plan, output=tmp_path / "adapters" / "letters"), lambda step, steps, loss: seen.append((step, steps))
    )
    assert trained.test is not None and trained.test.metrics["accuracy"] > 0.9
    assert seen[-1][0] <= seen[-1][1] == 6 * 8
    folder = tmp_path / "adapters" / "letters"
    assert {path.name for path in folder.iterdir()} >= {
        "adapter_config.json",
        "adapter.safetensors",
        "head_config.json",
        "model_head.safetensors",
        "README.md",
        "metrics.json",
        "learning-curve.png",
        "confusion.png",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["letters"]
    facts = json.loads((folder / "metrics.json").read_text())
    assert facts["test"]["metrics"]["accuracy"] == trained.test.metrics["accuracy"]
    assert sum(map(sum, facts["test"]["confusion"])) == 64
    assert f"accuracy **{trained.test.metrics['accuracy']:.4f}**" in (folder / "README.md").read_text()
    head = read_checkpoint(folder).head
    assert head is not None and head.config["labels"] == ("first", "second")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("token-classification", '{"tokens": ["a", "b"], "tags": ["B-x", "O"]}\n{"tokens": ["c"], "tags": ["O"]}\n'),
        ("multi-label-classification", '{"text": "a b", "label": ["x", "y"]}\n{"text": "c", "label": []}\n'),
        ("regression", '{"text": "a b", "label": 0.5}\n{"text": "c", "label": -1}\n'),
        (
            "text-classification",
            '{"text": "a", "text_pair": "b", "label": 1}\n{"text": "c", "text_pair": "d", "label": 0}\n',
        ),
    ],
)
def test_every_task(task: str, text: str, plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text * 8)
    own = replace(
        plan,
        task=task,
        train=file,
        validation=None,
        test=file,
        output=tmp_path / "out",
        training=replace(QUICK, epochs=1),
    )
    trained = train(own, quiet)
    assert trained.test is not None and trained.test.metrics
    read_checkpoint(tmp_path / "out")


def test_a_run_goes_on_where_it_was_killed(plan: Plan, tmp_path: Path) -> None:
    own = replace(plan, output=tmp_path / "letters", training=replace(QUICK, epochs=9, patience=2, learning_rate=0.05))

    class Killed(BaseException): ...

    def dies(step: int, steps: int, loss: float) -> None:
        if step == 2 * 8 + 3:
            raise Killed

    with pytest.raises(Killed):
        train(own, dies)
    assert not own.output.exists()
    steps: list[int] = []
    resumed = train(own, lambda step, _, loss: steps.append(step))
    assert steps[0] == 2 * 8 + 1
    whole = train(replace(own, output=tmp_path / "other"), quiet)
    assert [round(e.score, 4) for e in resumed.history.epochs] == [round(e.score, 4) for e in whole.history.epochs]
    assert resumed.test == whole.test


@pytest.mark.timeout(300)  # three processes import everything that trains
def test_killed_at_random_moments_it_still_ends_well(plan: Plan, tmp_path: Path) -> None:
    output = tmp_path / "letters"
    command = [
        sys.executable,
        "-m",
        "server",
        "train",
        "--base",
        plan.base,
        "--task",
        plan.task,
        "--train",
        str(plan.train),
        "--validation",
        str(plan.validation),
        "--test",
        str(plan.test),
        "--output",
        str(output),
        "--server",
        "none",
        "--config",
        plan.config,
        "--learning-rate",
        "0.01",
        "--batch-size",
        "16",
        "--device",
        "cpu",
    ]
    rng = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        work = tmp_path / ".letters.training" / "checkpoints"
        while process.poll() is None and not list(work.glob("checkpoint-*")):
            time.sleep(0.05)
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["folder"] == str(output) and 0 <= facts["test"]["accuracy"] <= 1
    assert (facts["trained_by"], facts["published_digest"]) == ("", "")
    read_checkpoint(output)
    assert not (tmp_path / ".letters.training").exists()


def test_a_folder_of_something_else_is_not_replaced(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="holds no adapter"):
        train(replace(plan, output=tmp_path / "notes"), quiet)
    assert (tmp_path / "notes" / "diary.txt").read_text() == "mine"


def test_other_options_do_not_go_on_with_an_unfinished_run(plan: Plan, tmp_path: Path) -> None:
    own = replace(plan, output=tmp_path / "letters")

    class Killed(BaseException): ...

    def dies(step: int, steps: int, loss: float) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(own, dies)
    other = replace(own, config="lora[r=2]", training=replace(QUICK, epochs=1))
    with pytest.raises(InvalidInput, match="unfinished run with other options, data or base"):
        train(other, quiet)
    train(other, quiet, restart=True)
    assert read_checkpoint(own.output).method == "lora"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(task="summarization"), "task 'summarization' is not one of"),
        (dict(config="seq_bm"), "seq_bm"),
        (dict(train=Path("nowhere.csv")), "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], said: str, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=said):
        train(replace(plan, output=tmp_path / "letters", **change), quiet)  # type: ignore[arg-type]
    assert not (tmp_path / "letters").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["train", "--task", "text-classification", "--train", "nowhere.csv", "--output", str(tmp_path / "a")]
    )
    assert done.exit_code == 2 and "nowhere.csv does not exist" in done.output


def test_a_step_that_would_not_fit_is_refused_with_the_remedy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run._free_bytes", lambda device: 100_000)
    plan = Plan(
        str(base), "text-classification", rows(tmp_path / "train.csv", 48, 0), None, None, tmp_path / "out" / "big",
        training=QUICK,
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="a step over 16 texts of up to 9 tokens needs about .* batch size of"):
        train(plan, lambda *_: None)
    assert not plan.output.exists() and not plan.work.exists()
