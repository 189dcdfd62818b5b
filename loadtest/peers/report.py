"""The report of a comparison: a table on the terminal, JSON, Markdown and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.peers.results import PeersReport, Row

COLUMNS = ("contender", "tokens/s", "ours / it", "differs by", "batch", "MiB/task", "process MiB")
MIN_WIDTH = 92  # of the table, so that no name or figure is cut
RULES = """\
Every contender loads the same base, reads the same adapters from files in AdapterHub's or PEFT's own layout, and takes
the same texts: random token ids of log-normal length, median 32, at most 256 tokens, in the order of arrival, text i
for adapter i modulo their number. Weights are random in every tensor, so that a wrong adapter shows: with its
neighbour's adapter every answer is out of tolerance, which is checked.

- Answers come first: all are compared with ours, as |difference| / (1 + |ours|), in the batches that are timed. Whoever
  differs by more than rounding is not timed. Peers without adapters give the first token's vector, the others logits.
- A padded batch holds rows x longest text within its token budget, ours holds tokens. Each contender has the fastest of
  the same budgets, tried before the rounds. Nobody reorders arrivals, except that `BatchSplit` needs the texts of one
  adapter beside each other and orders each batch so. No mask is passed where there is no padding.
- Every contender is a process of its own with the same number of threads. They run in turn, round by round; ratios are
  medians of the rounds' own. Tokens/s count real tokens. Padding and batching are within the time, tokenizing is not.
- A batch is in tokens. Memory per task is what one more adapter or model takes, process memory what is resident after
  loading.
- A full model per task is the base with that task's LoRA added into its weights. Only the texts of tasks that fit into
  memory are answered."""


def print_table(report: PeersReport) -> None:
    """Each contender with its rate, ratio and target, or its error."""
    title = f"{report.workload}; {report.machine['device']}, {report.machine['dtype']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS[:-1]:
        table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    for row in report.rows:
        table.add_row(*_cells(row)[:-1])
    console = Console(width=max(Console().width, MIN_WIDTH))
    console.print(table)
    for row in report.rows:
        if row.error:
            console.print(f"{row.title}: {row.error}", markup=False, highlight=False)


def write_report(folder: Path, report: PeersReport) -> None:
    """peers.json, peers.md and peers.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = asdict(report) | {"figures": [asdict(figure) for figure in report.figures]}
    (folder / "peers.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / "peers.md").write_text(_markdown(report), encoding="utf-8")
    _plot(folder / "peers.png", report)


def _cells(row: Row) -> list[str]:
    """As COLUMNS."""
    rate = row.tokens_per_s
    return [
        row.title,
        "error" if rate is None else f"{rate:,.0f}",
        _ratio(row),
        "" if row.difference is None else f"{row.difference:.0e}",
        "" if rate is None else str(row.budget or "1 text"),
        _mib(row.bytes_per_task),
        _mib(row.rss_bytes),
    ]


def _ratio(row: Row) -> str:
    target = "" if row.target is None else f"(>= {row.target:g})"
    return f"{'' if row.ratio is None else f'{row.ratio:.2f}'} {target}".strip()


def _mib(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**20:,.1f}"


def _markdown(report: PeersReport) -> str:
    lines = [
        "# Ours beside other ways to serve many adapters",
        "",
        f"Machine: {_listed(report.machine)}. Workload: {report.workload}. Command: `{report.command}`",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| --- " * len(COLUMNS) + "|",
        *("| " + " | ".join(_cells(row)) + " |" for row in report.rows),
        "",
        *(f"- {row.title} did not run: {row.error}" for row in report.rows if row.error),
        "",
        "![tokens/s of each contender](peers.png)",
        "",
        "## How it is measured",
        "",
        RULES,
        "",
        "## Versions",
        "",
        *(f"- {row.title}: {_listed(row.versions)}" for row in report.rows if row.versions),
    ]
    return "\n".join([*lines, ""])


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _plot(path: Path, report: PeersReport) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in reversed(report.rows) if not row.error]
    figure, axis = plt.subplots(figsize=(7.2, 0.6 + 0.42 * len(rows)), layout="constrained")
    colours = ["tab:gray" if row.key else "tab:blue" for row in rows]
    bars = axis.barh([row.title for row in rows], [row.tokens_per_s or 0.0 for row in rows], color=colours)
    axis.bar_label(bars, [f" {row.ratio:.1f}x" if row.ratio else "" for row in rows], fontsize="small")
    axis.set(xlabel="tokens/s; at peers, how many times as fast ours is")
    axis.margins(x=0.1)
    figure.savefig(path, dpi=130)
    plt.close(figure)
