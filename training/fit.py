"""Train an `AdapterModel` on tokenized examples with the Trainer of `transformers`: resumable, with early stopping."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalPrediction

from server.errors import InvalidInput
from training.losses import IGNORED
from training.stitch import AdapterModel
from training.tasks import Item, Scores

Score = Callable[[Sequence[Tensor], Sequence[Tensor]], Scores]
Progress = Callable[[int, int, float], None]
STATE = "trainer_state.json"  # the Trainer writes it last


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """warmup and weight_decay as in AdamW's usual recipe; patience counts epochs without a better validation score."""

    epochs: int = 10
    learning_rate: float = 5e-4
    batch_size: int = 32
    warmup: float = 0.06  # share of steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} {getattr(self, name)} must be at least 1")
        for name, most in (("epochs", 1000), ("batch_size", 1024)):
            if getattr(self, name) > most:
                raise InvalidInput(f"{name} {getattr(self, name)} is more than {most}, the limit")
        if not 0 < self.learning_rate < math.inf:
            raise InvalidInput(f"learning_rate {self.learning_rate:g} must be more than 0")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What was seen at the end of one: mean training loss since the last, loss and score on validation."""

    epoch: float
    loss: float
    validation_loss: float
    score: float


@dataclass(frozen=True, slots=True)
class History:
    """best   the validation score of the epoch whose weights the model has now"""

    best: float
    epochs: tuple[Epoch, ...] = field(default=())


def fit(
    model: AdapterModel,
    train: Sequence[Item],
    validation: Sequence[Item],
    score: Score,
    config: TrainConfig,
    folder: Path,
    progress: Progress = lambda step, steps, loss: None,
) -> History:
    """Train; the model ends with the weights of the epoch that scored best on `validation`.

    folder     where checkpoints lie, after every epoch; from the last complete one there it goes on
    progress   called with (step, steps in all, training loss)
    """
    torch.manual_seed(config.seed)
    steps = config.epochs * -(-len(train) // config.batch_size)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=2 * config.batch_size,
        warmup_steps=max(1, int(steps * config.warmup)),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="steps",
        logging_steps=min(10, steps // config.epochs),
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=model.base.device.type == "cpu",
        seed=config.seed,
        restore_callback_states_from_checkpoint=True,  # how long the score has not risen
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # the base is on one device
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=_collate,
        compute_metrics=lambda found: {"score": score(*_split(found)).value},
        callbacks=[EarlyStoppingCallback(config.patience), _Reporter(progress)],
    )
    for quiet in [own for own in trainer.callback_handler.callbacks if type(own).__name__ == "PrinterCallback"]:
        trainer.remove_callback(quiet)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return _history(trainer.state.log_history, float(trainer.state.best_metric or 0.0))


@torch.no_grad()
def predict(model: AdapterModel, items: Sequence[Item], batch_size: int = 64) -> list[Tensor]:
    """Logits of each input, in order, on the host."""
    order = sorted(range(len(items)), key=lambda i: items[i].encoding.num_tokens)
    logits: list[Tensor] = [torch.empty(0)] * len(items)
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        for i, values in zip(indices, model.logits([items[i].encoding for i in indices]), strict=True):
            logits[i] = values.float().cpu()
    return logits


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is complete. Others, of a run that was killed while it wrote, are removed."""
    found = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        found.append((int(path.name.rpartition("-")[2]), str(path)))
    return max(found)[1] if found else None


class _Reporter(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self._progress, self._loss = progress, float("nan")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress(state.global_step, state.max_steps, self._loss)


def _collate(items: Sequence[Item]) -> dict[str, Tensor]:
    """A padded batch, as any `transformers` model takes it."""
    ids = [torch.tensor(item.encoding.input_ids) for item in items]
    targets = [item.target for item in items]
    is_per_token = targets[0].dtype is torch.int64 and any(len(t) != 1 for t in targets)
    labels = pad_sequence(targets, batch_first=True, padding_value=IGNORED) if is_per_token else torch.stack(targets)
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "token_type_ids": pad_sequence([torch.tensor(i.encoding.token_type_ids) for i in items], batch_first=True),
        "labels": labels,
    }


def _split(found: EvalPrediction) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and targets of each input; what was padded has no label."""
    logits, targets = torch.as_tensor(found.predictions), torch.as_tensor(found.label_ids)
    return list(logits), list(targets)


def _history(log: Sequence[dict[str, float]], best: float) -> History:
    epochs, losses = [], []
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
        elif "eval_score" in entry:
            mean = sum(losses) / len(losses) if losses else float("nan")
            epochs.append(Epoch(entry["epoch"], mean, entry["eval_loss"], entry["eval_score"]))
            losses = []
    return History(best, tuple(epochs))
