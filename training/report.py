"""What a training run leaves beside its adapter: card, metrics, learning curve and mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.tasks import Scores, TrainTask

if TYPE_CHECKING:
    from training.run import Trained

METRICS, CARD, CURVE, CONFUSION = "metrics.json", "README.md", "learning-curve.png", "confusion.png"
MAX_SHOWN = 30  # labels in a confusion matrix that can still be read


def write_report(folder: Path, trained: Trained, task: TrainTask) -> None:
    """metrics.json for programs, README.md for people and the model hub; pictures where matplotlib is installed."""
    (folder / METRICS).write_text(json.dumps(_facts(trained, task), indent=2) + "\n", encoding="utf-8")
    pictures = _pictures(folder, trained, task)
    (folder / CARD).write_text(_card(trained, task, pictures), encoding="utf-8")


def _facts(trained: Trained, task: TrainTask) -> dict[str, Any]:
    def of(scores: Scores | None) -> dict[str, Any] | None:
        return None if scores is None else asdict(scores)

    plan = trained.plan
    return {
        "name": plan.name,
        "base": trained.base,
        "task": task.name,
        "config": plan.config,
        "head": task.head_type,
        "labels": list(trained.labels),
        "metric": task.metric,
        "sizes": trained.sizes,
        "num_trained": trained.num_trained,
        "training": asdict(plan.training),
        "validation": of(trained.validation),
        "test": of(trained.test),
        "epochs": [asdict(epoch) for epoch in trained.history.epochs],
    }


def _card(trained: Trained, task: TrainTask, pictures: Mapping[str, str]) -> str:
    plan = trained.plan
    sizes = ", ".join(f"{name} {size:,}" for name, size in trained.sizes.items())
    parts = [
        _front_matter(trained, task),
        f"# {plan.name}\n",
        "| | |\n| --- | --- |",
        f"| base | {trained.base} |",
        f"| method | `{plan.config}`, {trained.num_trained:,} parameters with the head |",
        f"| task | {task.name}: {', '.join(f'`{label}`' for label in trained.labels[:MAX_SHOWN]) or 'a number'} |",
        f"| examples | {sizes} |",
    ]
    for split, scores in (("validation", trained.validation), ("test", trained.test)):
        if scores is not None:
            said = ", ".join(f"{name} **{value:.4f}**" for name, value in scores.metrics.items())
            parts.append(f"| {split} | {said} |")
    parts += [
        "",
        f"AdapterHub layout, safetensors. Serve it with `adapterd serve --adapters {plan.output.parent.name}`.\n",
    ]
    parts += [f"![{caption}]({file})\n" for file, caption in pictures.items()]
    shown = trained.test or trained.validation
    if shown.by_label:
        parts += ["| label | precision | recall | F1 | support |", "| --- | --- | --- | --- | --- |"]
        parts += [
            f"| {label} | {s['precision']:.3f} | {s['recall']:.3f} | {s['f1']:.3f} | {s['support']:,.0f} |"
            for label, s in shown.by_label.items()
        ]
    return "\n".join(parts) + "\n"


def _front_matter(trained: Trained, task: TrainTask) -> str:
    """What the model hub reads of a card."""
    lines = [
        "---",
        f"base_model: {trained.base}",
        "tags:",
        "- adapter-transformers",
        "- adapterd",
        f"- {task.name}",
        "---",
        "",
    ]
    return "\n".join(lines)


def _pictures(folder: Path, trained: Trained, task: TrainTask) -> dict[str, str]:
    """File and caption of each."""
    try:
        import matplotlib
    except ImportError:
        return {}
    matplotlib.use("Agg")
    found = {CURVE: f"Learning curve: losses, and {task.metric} on validation, by epoch."}
    _curve(folder / CURVE, trained, task)
    shown = trained.test or trained.validation
    if shown.confusion and len(trained.labels) <= MAX_SHOWN:
        _confusion(folder / CONFUSION, shown, trained.labels)
        found[CONFUSION] = "Confusion matrix: gold labels by predicted ones."
    return found


def _curve(path: Path, trained: Trained, task: TrainTask) -> None:
    from matplotlib import pyplot

    epochs = trained.history.epochs
    figure, axes = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    at = [epoch.epoch for epoch in epochs]
    axes.plot(at, [epoch.loss for epoch in epochs], marker="o", label="training loss")
    axes.plot(at, [epoch.validation_loss for epoch in epochs], marker="s", label="validation loss")
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    right = axes.twinx()
    right.plot(at, [epoch.score for epoch in epochs], marker="^", color="#10b981", label=task.metric)
    right.set(ylabel=task.metric)
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _confusion(path: Path, scores: Scores, labels: tuple[str, ...]) -> None:
    from matplotlib import pyplot

    size = 2.5 + 0.4 * len(labels)
    figure, axes = pyplot.subplots(figsize=(size + 1, size), layout="constrained")
    totals = [max(1, sum(row)) for row in scores.confusion]
    axes.imshow(
        [[n / t for n in row] for row, t in zip(scores.confusion, totals, strict=True)], cmap="Blues", vmin=0, vmax=1
    )
    for i, row in enumerate(scores.confusion):
        for j, count in enumerate(row):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if count / totals[i] > 0.5 else "black")
    numbers = range(len(labels))
    axes.set_xticks(numbers, labels, rotation=45, ha="right")
    axes.set_yticks(numbers, labels)
    axes.set(xlabel="predicted", ylabel="gold")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
