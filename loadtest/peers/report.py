"""The report of a comparison: a table on the terminal, JSON, a page, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from loadtest import markdown
from loadtest.html import Plot, Section, write_json
from loadtest.html import Report as Page
from loadtest.html import Table as Grid
from loadtest.peers.results import PeersReport, Row
from loadtest.plots import COLORS, SIZE, save_png, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("contender", "tokens/s", "ours / it", "differs by", "batch", "MiB/task", "process MiB")
MIN_WIDTH = 92  # of the table, so that no name or figure is cut
RULES = """\
Every contender loads the same base, reads the same adapters from files in AdapterHub's or PEFT's own layout, and takes
the same texts: random token ids of log-normal length, median 32, at most 256 tokens, in the order of arrival, text i
for adapter i modulo their number. Weights are random in every tensor, so that a wrong adapter shows: with its
neighbour's adapter every answer is out of tolerance, which is checked.

Answers come first: all are compared with ours, as |difference| / (1 + |ours|), in the batches that are timed. Whoever
differs by more than rounding is not timed. Peers without adapters give the first token's vector, the others logits.

A padded batch holds rows x longest text within its token budget, ours holds tokens. Each contender has the fastest of
the same budgets, tried before the rounds. Nobody reorders arrivals, except that `BatchSplit` needs the texts of one
adapter beside each other and orders each batch so. No mask is passed where there is no padding.

Every contender is a process of its own with the same number of threads, and none has settings of its own from outside:
what ours sets at its start (weights packed, freed memory kept) is part of it. They run in turn, round by round; ratios
are medians of the rounds' own. Tokens/s count real tokens. Padding and batching are within the time, tokenizing is not.

A batch is in tokens. Memory per task is what one more adapter or model takes, process memory what is resident after
loading.

A full model per task is the base with that task's LoRA added into its weights. Only the texts of tasks that fit into
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
    """peers.json, peers.html, peers.md and peers.png in `folder`."""
    write_json(folder / "peers.json", asdict(report) | {"figures": report.figures})
    draw = partial(_bars, report=report)
    size = (SIZE[0], 0.6 + 0.42 * len(report.rows))
    plot = Plot(svg_of(draw, "peers", size), "tokens/s of each contender; at peers, how many times as fast ours is.")
    page = _page(report, plot)
    page.write(folder / "peers.html")
    save_png(draw, folder / "peers.png", size)
    (folder / "peers.md").write_text(markdown.document(page, {plot.svg: "peers.png"}), encoding="utf-8")


def _page(report: PeersReport, plot: Plot) -> Page:
    failures = "\n\n".join(f"{row.title} did not run: {row.error}" for row in report.rows if row.error)
    versions = [(row.title, _listed(row.versions)) for row in report.rows if row.versions]
    return Page(
        title="Ours beside other ways to serve many adapters",
        summary=f"{report.workload}. Same weights, same texts, one run; answers are compared before anything is timed.",
        machine=report.machine,
        command=report.command,
        figures=report.figures,
        sections=[
            Section("Tokens/s", failures, [Grid(COLUMNS, [_cells(row) for row in report.rows]), plot]),
            Section("How it is measured", RULES),
            Section("Versions", "", [Grid(("contender", "versions"), versions, is_prose=True)]),
        ],
    )


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


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _bars(axis: Axes, report: PeersReport) -> None:
    rows = [row for row in reversed(report.rows) if not row.error]
    colors = [COLORS[1] if row.key else COLORS[0] for row in rows]
    bars = axis.barh([row.title for row in rows], [row.tokens_per_s or 0.0 for row in rows], color=colors)
    axis.bar_label(bars, [f" {row.ratio:.1f}x" if row.ratio else "" for row in rows], fontsize="small")
    axis.set(xlabel="tokens/s; at peers, how many times as fast ours is")
    axis.margins(x=0.1)
