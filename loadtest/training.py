"""`adapterd train` beside AdapterHub's library: same base, files, method, head, epochs and batch; several seeds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from loadtest.bench import machine
from loadtest.figures import Figure, at_most
from loadtest.peers.environments import python_of
from loadtest.peers.process import PeerFailed, last_line
from server.model.base import locate
from training.data import SPLITS, Dataset, Example, read_snips, read_sst2
from training.fit import TrainConfig
from training.scores import entity_f1
from training.tasks import TASKS, TrainTask

WORKER = Path(__file__).parent / "peers" / "workers" / "adapterhub_trainer.py"
FILES = {"train": "train", "dev": "validation", "test": "test"}
OURS, THEIRS = "adapterd", "AdapterHub"
METHOD = "seq_bn"
TIMEOUT_S = 3600.0  # of one training


@dataclass(frozen=True, slots=True)
class Corpus:
    """A data set and what is learnt from it."""

    title: str
    task: str
    read: Callable[[Path], Dataset]


CORPORA: Mapping[str, Corpus] = {
    "sst2": Corpus("SST-2", "text-classification", lambda data: read_sst2(data / "sst2")),
    "snips-intent": Corpus("SNIPS intents", "text-classification", lambda data: read_snips(data / "snips", "intent")),
    "snips-slots": Corpus("SNIPS slots", "token-classification", lambda data: read_snips(data / "snips", "slots")),
}


@dataclass(slots=True)
class Row:
    """One contender on one corpus: test score and seconds of each seed."""

    corpus: str
    contender: str
    metric: str
    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class TrainingReport:
    machine: dict[str, str]
    command: str
    method: str
    config: TrainConfig
    rows: tuple[Row, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        found = []
        for ours, theirs in zip(self.rows[::2], self.rows[1::2], strict=True):
            behind = theirs.mean - ours.mean
            deviation = max(ours.deviation, theirs.deviation)
            name = f"{ours.corpus}: {theirs.contender}'s {ours.metric} minus ours, in standard deviations"
            found.append(at_most(name, behind / deviation if deviation else behind, 1.0))
            ratio = statistics.mean(ours.seconds) / statistics.mean(theirs.seconds)
            found.append(at_most(f"{ours.corpus}: our wall time / {theirs.contender}'s", ratio, 1.0))
        return tuple(found)


def run(
    data: Path, base: str, corpora: Sequence[str], seeds: int, epochs: int, environments: Path, command: str
) -> TrainingReport:
    """Train in turn, ours and theirs, each in a process of its own. Raises PeerFailed with the last word of either."""
    with tempfile.TemporaryDirectory() as folder, Progress() as bar:
        steps = bar.add_task("AdapterHub's environment", total=len(corpora) * seeds * 2)
        python = python_of("adapterhub", environments, lambda _: None)
        rows: list[Row] = []
        for name in corpora:
            corpus = CORPORA[name]
            material = _Material(corpus, corpus.read(data), Path(folder) / name, locate(base))
            pair = [Row(corpus.title, who, material.task.metric) for who in (OURS, THEIRS)]
            for seed in range(seeds):
                config = TrainConfig(epochs=epochs, seed=seed)
                for row, score in zip(pair, (material.ours, material.theirs), strict=True):
                    bar.update(steps, description=f"{corpus.title}, seed {seed}: {row.contender}")
                    started = time.perf_counter()
                    row.scores.append(score(config, python))
                    row.seconds.append(time.perf_counter() - started)
                    bar.advance(steps)
            rows += pair
    return TrainingReport(machine("cpu", "float32"), command, METHOD, TrainConfig(epochs=epochs), tuple(rows))


class _Material:
    """The same examples as files for either side."""

    def __init__(self, corpus: Corpus, dataset: Dataset, folder: Path, base: str) -> None:
        self.task: TrainTask = TASKS[corpus.task]
        self._dataset, self._folder, self._base = dataset, folder, base
        folder.mkdir(parents=True)
        for split in SPLITS:
            examples = dataset.splits[split]
            rows = [json.dumps(_row(example), ensure_ascii=False) for example in examples]
            (folder / f"{FILES[split]}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
            numbered = [_numbered(example, dataset.labels) for example in examples]
            (folder / f"{FILES[split]}.json").write_text(json.dumps(numbered), encoding="utf-8")

    def ours(self, config: TrainConfig, python: Path) -> float:
        output = self._folder / f"ours-{config.seed}"
        files = [part for split in FILES.values() for part in (f"--{split}", str(self._folder / f"{split}.jsonl"))]
        options = ["--config", METHOD, "--epochs", str(config.epochs), "--seed", str(config.seed)]
        command = ["train", "--base", self._base, "--server", "none", "--task", self.task.name, *files, *options]
        _call([sys.executable, "-m", "server", *command, "--output", str(output)])
        return float(json.loads((output / "metrics.json").read_text())["test"]["metrics"][self.task.metric])

    def theirs(self, config: TrainConfig, python: Path) -> float:
        """Scored on the test file's own tags, by ours."""
        output = self._folder / f"theirs-{config.seed}.json"
        job: dict[str, Any] = {
            **asdict(config),
            **{split: str(self._folder / f"{split}.json") for split in FILES.values()},
            "base": self._base,
            "method": METHOD,
            "head": self.task.head_type,
            "labels": self._dataset.labels,
            "folder": str(self._folder / f"checkpoints-{config.seed}"),
            "output": str(output),
        }
        plan = output.with_suffix(".job")
        plan.write_text(json.dumps(job), encoding="utf-8")
        _call([str(python), "-E", "-s", str(WORKER), str(plan)])
        found = json.loads(output.read_text())
        gold = [example.label for example in self._dataset.splits["test"]]
        labels = self._dataset.labels
        if self.task.has_tags:
            return entity_f1([[labels[i] for i in row] for row in found], gold)
        return sum(bool(labels[i] == label) for i, label in zip(found, gold, strict=True)) / len(gold)


def _row(example: Example) -> dict[str, Any]:
    if isinstance(example.label, tuple):
        return {"tokens": example.text.split(), "tags": example.label}
    return {"text": example.text, "label": example.label}


def _numbered(example: Example, labels: Sequence[str]) -> list[Any]:
    """Text or words with label numbers; a tag that does not occur in training is taken as outside."""
    index = {label: i for i, label in enumerate(labels)}
    if isinstance(example.label, tuple):
        return [example.text.split(), [index.get(tag, index["O"]) for tag in example.label]]
    return [example.text, index[example.label]]


def _call(command: Sequence[str]) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
    if done.returncode:
        raise PeerFailed(f"{Path(command[-1]).name}: {last_line(done.stderr or done.stdout)}")
