"""AdapterHub's library trains one adapter: `python adapterhub_trainer.py JOB.json` leaves what it answers in a file.

JOB holds base (a folder), method, head (classification, tagging), labels, train, validation and test (files of rows
with a text, or words, and labels by number), epochs, batch_size, learning_rate, warmup, weight_decay, patience, seed,
folder (for checkpoints) and output: a list of predicted label numbers, one per text or one list per text's words.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from adapters import AdapterTrainer, AutoAdapterModel
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    TrainingArguments,
    set_seed,
)

NAME = "task"
IGNORED = -100


def main(job: dict[str, Any]) -> None:
    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    is_tagging = job["head"] == "tagging"
    rows = {split: _rows(tokenizer, json.loads(Path(job[split]).read_text())) for split in SPLITS}
    model = AutoAdapterModel.from_pretrained(job["base"])
    add_head = model.add_tagging_head if is_tagging else model.add_classification_head
    add_head(NAME, num_labels=len(job["labels"]), id2label=dict(enumerate(job["labels"])))
    model.add_adapter(NAME, config=job["method"])
    model.train_adapter(NAME)
    steps = job["epochs"] * -(-len(rows["train"]) // job["batch_size"])
    trainer = AdapterTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=job["folder"],
            num_train_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            per_device_train_batch_size=job["batch_size"],
            per_device_eval_batch_size=2 * job["batch_size"],
            warmup_steps=max(1, int(steps * job["warmup"])),
            weight_decay=job["weight_decay"],
            lr_scheduler_type="linear",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=True,
            report_to=[],
            dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
            seed=job["seed"],
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=(DataCollatorForTokenClassification if is_tagging else DataCollatorWithPadding)(tokenizer),
        compute_metrics=_score,
        callbacks=[EarlyStoppingCallback(job["patience"])],
    )
    trainer.train()
    found = trainer.predict(rows["test"])
    answers = [
        _picked(best, labels) for best, labels in zip(found.predictions.argmax(-1), found.label_ids, strict=True)
    ]
    Path(job["output"]).write_text(json.dumps(answers))


SPLITS = ("train", "validation", "test")


def _rows(tokenizer: Any, examples: list[list[Any]]) -> list[dict[str, Any]]:
    """A text as it is; words with their label at the first token of each."""
    rows = []
    for text, labels in examples:
        row = dict(tokenizer(text, is_split_into_words=isinstance(text, list), truncation=True))
        row["labels"] = labels
        if isinstance(text, list):
            words = tokenizer(text, is_split_into_words=True, truncation=True).word_ids()
            opens = [word is not None and word != words[i - 1] for i, word in enumerate(words)]
            row["labels"] = [labels[words[i]] if is_open else IGNORED for i, is_open in enumerate(opens)]
        rows.append(row)
    return rows


def _score(found: Any) -> dict[str, float]:
    """The share of labels that are right."""
    is_labelled = found.label_ids != IGNORED
    is_right = found.predictions.argmax(-1) == found.label_ids
    return {"score": float(is_right[is_labelled].mean())}


def _picked(best: Any, labels: Any) -> Any:
    return best[labels != IGNORED].tolist() if best.ndim else int(best)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
