"""The report on training: a table on the terminal, JSON and Markdown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from loadtest import markdown
from loadtest.html import Report, Section, Table, write_json
from loadtest.training import TrainingReport

RULES = """\
Both start from the same base in float32 and take the same files, method, head, epochs, batch, learning rate, schedule,
weight decay and early stopping, which are the defaults of `adapterd train`; first weights and the order of examples
are each one's own, from the seed. After every epoch both validate, keep a checkpoint, and end with the best epoch's.

Ours is the command `adapterd train`, with its report and card; AdapterHub's is its library's `AdapterTrainer` with
batches padded to their longest text. Its base has dropout on while it trains, ours never; of the
epochs it keeps the one with most labels right, ours the one best by the metric shown. Wall time is that of the
whole process. They run in turn."""


def page(report: TrainingReport) -> Report:
    config = report.config
    header = ("data", "trained by", "metric", "test, mean", "deviation", "seeds", "wall time, s")
    rows = [
        (
            row.corpus,
            row.contender,
            row.metric,
            f"{row.mean:.4f}",
            f"{row.deviation:.4f}",
            ", ".join(f"{score:.4f}" for score in row.scores),
            ", ".join(f"{seconds:.0f}" for seconds in row.seconds),
        )
        for row in report.rows
    ]
    return Report(
        title="Training, beside AdapterHub's library",
        summary=f"Method {report.method}, {config.epochs} epochs, batches of {config.batch_size}, learning rate"
        f" {config.learning_rate:g}.",
        machine=report.machine,
        command=report.command,
        figures=report.figures,
        sections=[Section("Scores and wall time", "", [Table(header, rows)]), Section("How it is measured", RULES)],
    )


def print_report(report: TrainingReport) -> None:
    """Each figure beside its target."""
    markdown.print_figures(report.figures)


def write_report(folder: Path, report: TrainingReport) -> None:
    """training.json and training.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "training.json", asdict(report) | {"figures": report.figures})
    (folder / "training.md").write_text(markdown.document(page(report), {}), encoding="utf-8")
