"""From files to a published folder: read, tokenize, train, test, report. The order of it all."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adapters_cache.formats.adapterhub import check_file_name, check_replaceable
from server.config import ModelConfig
from server.core import Encoding, Parameters, TextInput, Truncation
from server.errors import InvalidInput
from server.folders import folder_beside, put_in_place
from server.model.base import Base, load_base
from server.tokenizer import Tokenizer
from training.data import Example
from training.files import read_examples
from training.fit import History, Progress, TrainConfig, fit, predict
from training.report import write_report
from training.stitch import AdapterModel, stitch
from training.tasks import TASKS, Item, Scores, TrainTask

GB = 1e9
HELD_OUT = 0.1  # share of the training file that validates where no file does
CHECKPOINTS, PLAN = "checkpoints", "plan.json"  # in the work folder


@dataclass(frozen=True, slots=True)
class Plan:
    """What `adapterd train` was asked for. `output` is the adapter's folder, named like the adapter."""

    base: str
    task: str
    train: Path
    validation: Path | None
    test: Path | None
    output: Path
    config: str = "seq_bn"
    device: str = "auto"
    on: tuple[Path, ...] = ()
    training: TrainConfig = TrainConfig()

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def work(self) -> Path:
        """Where a run keeps what it needs to go on after a kill."""
        return self.output.parent / f".{self.output.name}.training"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run ends with. `test` is of the weights as they were written; None without a test file."""

    plan: Plan
    base: str
    labels: tuple[str, ...]
    sizes: dict[str, int]
    num_trained: int  # parameters
    history: History
    validation: Scores
    test: Scores | None


def train(plan: Plan, progress: Progress, *, restart: bool = False, base: Base | None = None) -> Trained:
    """Train, and write the adapter, its card, metrics and pictures to `plan.output`, which appears as a whole.

    base      one that is loaded, instead of `plan.base`
    restart   forget an earlier run that was stopped; otherwise it goes on
    Raises InvalidInput where files, base or plan do not fit, or where an unfinished run had another plan.
    """
    check_file_name(plan.name)
    check_replaceable(plan.output)
    if plan.task not in TASKS:
        raise InvalidInput(f"task {plan.task!r} is not one of {', '.join(TASKS)}")
    task = TASKS[plan.task]
    splits = _read(plan, task)
    if base is None:
        base = load_base(ModelConfig(base=plan.base, device=plan.device, dtype="float32", backend="eager"))
    labels = task.labels_of(splits["train"] if plan.validation else [*splits["train"], *splits["validation"]])
    index = {label: i for i, label in enumerate(labels)}
    items = {split: _items(base, task, examples, index) for split, examples in splits.items()}
    lengths = [item.encoding.num_tokens for own in items.values() for item in own]
    check_memory(base, lengths, plan.training.batch_size)
    model = _model(plan, base, task, labels)
    _settle(plan, restart, base.info.fingerprint, labels)
    history = fit(
        model,
        items["train"],
        items["validation"],
        lambda logits, targets: task.score(logits, targets, labels),
        plan.training,
        plan.work / CHECKPOINTS,
        progress,
    )
    scores = {
        split: task.score(predict(model, own), [i.target for i in own], labels)
        for split, own in items.items()
        if split != "train"
    }
    trained = Trained(
        plan=plan,
        base=base.info.name,
        labels=labels,
        sizes={split: len(examples) for split, examples in splits.items()},
        num_trained=sum(parameter.numel() for parameter in model.parameters()),
        history=history,
        validation=scores["validation"],
        test=scores.get("test"),
    )
    _publish(plan, model, trained, task)
    return trained


def _read(plan: Plan, task: TrainTask) -> dict[str, list[Example]]:
    paths = {"train": plan.train, "validation": plan.validation, "test": plan.test}
    splits = {
        split: read_examples(path, has_tags=task.has_tags, is_multi=task.is_multi)
        for split, path in paths.items()
        if path is not None
    }
    if "validation" not in splits:
        rows = splits["train"]
        random.Random(plan.training.seed).shuffle(rows)
        num_held_out = max(1, int(len(rows) * HELD_OUT))
        if len(rows) <= num_held_out:
            raise InvalidInput(f"{plan.train} has {len(rows)} rows, too few to hold some out: give --validation")
        splits |= {"validation": rows[:num_held_out], "train": rows[num_held_out:]}
    return splits


def _settle(plan: Plan, restart: bool, fingerprint: str, labels: Sequence[str]) -> None:
    """Make sure that what lies in the work folder is of this very plan, base and data."""
    if restart:
        shutil.rmtree(plan.work, ignore_errors=True)
    files = [path for path in (plan.train, plan.validation, plan.test) if path is not None]
    facts = {
        "plan": asdict(plan),
        "fingerprint": fingerprint,
        "labels": list(labels),
        "files": [_digest(path) for path in files],
    }
    file, said = plan.work / PLAN, json.dumps(facts, default=str, indent=2)
    if file.exists() and file.read_text(encoding="utf-8") != said:
        raise InvalidInput(
            f"{plan.work} holds an unfinished run with other options, data or base; give the same ones to go on,"
            " or --restart to forget it"
        )
    plan.work.mkdir(parents=True, exist_ok=True)
    file.write_text(said, encoding="utf-8")


def _digest(path: Path) -> str:
    """sha256 over a file, or over those of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _items(base: Base, task: TrainTask, examples: Sequence[Example], index: dict[str, int]) -> list[Item]:
    encodings = encode(base, examples)
    return [
        Item(encoding, task.target(example, encoding, index))
        for example, encoding in zip(examples, encodings, strict=True)
    ]


def encode(base: Base, examples: Sequence[Example]) -> list[Encoding]:
    """Texts as the server reads them; what is longer than the base takes is cut off."""
    tokenizer = Tokenizer(base.tokenizer_path, base.info, num_threads=os.cpu_count() or 1)
    try:
        inputs = [TextInput(example.text, example.text_pair) for example in examples]
        return asyncio.run(tokenizer.encode(inputs, Parameters(truncation=Truncation.LONGEST_FIRST)))
    finally:
        tokenizer.close()


def check_memory(base: Base, lengths: Sequence[int], batch_size: int) -> None:
    """Raises InvalidInput where a step over the longest texts would not fit beside what the machine does already."""
    info = base.info
    # what a layer keeps of a token for its gradient, as measured: 19 to 23 times the hidden size of BERT's shape
    values = 11 * info.hidden_size + 3 * (info.intermediate_size or 4 * info.hidden_size)
    tokens = sum(sorted(lengths)[-batch_size:])
    needed = tokens * info.num_layers * values * base.dtype.itemsize
    free = _free_bytes(base.device)
    if needed > free:
        raise InvalidInput(
            f"a step over {batch_size} texts of up to {max(lengths)} tokens needs about {needed / GB:.1f} GB,"
            f" {free / GB:.1f} GB are free; use a batch size of {max(1, batch_size * free // needed)}, or shorter texts"
        )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # comes with accelerate

    return int(psutil.virtual_memory().available)


def _model(plan: Plan, base: Base, task: TrainTask, labels: tuple[str, ...]) -> AdapterModel:
    head: dict[str, object] = {"head_type": task.head_type}
    if not labels:
        head["num_labels"] = 1
    return stitch(base, plan.name, plan.config, head=head, labels=labels, on=plan.on, seed=plan.training.seed)


def _publish(plan: Plan, model: AdapterModel, trained: Trained, task: TrainTask) -> None:
    """A reader finds the old adapter or the new one, never half of one."""
    with folder_beside(plan.output) as aside:
        model.save_adapter(aside)
        write_report(aside, trained, task)
        put_in_place(aside, plan.output)
    shutil.rmtree(plan.work)
