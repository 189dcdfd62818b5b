"""The engine report: tables on the terminal, JSON, a page, Markdown and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as TerminalTable

from loadtest import markdown
from loadtest.engine import Knee, Report, Result, Row
from loadtest.grid import PADDED
from loadtest.html import Plot, Section, Table, write_json
from loadtest.html import Report as Page
from loadtest.layers import Share
from loadtest.plots import Draw, save_png, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = ("tokens/s", "texts/s", "of base only")
WORKLOAD = (
    "Random tokens. Log-normal lengths have a median of 32, at most 256 tokens. Batches hold texts in order of arrival,"
    " padded ones rows x longest text within the budget; tokens/s count real tokens. Runs take turns, round by round;"
    " rates are of the median round, ratios medians of the rounds' own. Adapters have a two-class head each, are dealt"
    " out anew in every round, and are `seq_bn` of width 48 (reduction factor 16) where nothing else is said."
)
AXES = {
    "adapter mix": "How the same adapters are spread over the texts.",
    "resident adapters, zipf": "How many adapters lie on the device; the one of rank k is asked for as often as 1/k.",
    "method": "Distinct adapters of one method each.",
    "bottleneck width": "Distinct `seq_bn` adapters, by their reduction factor.",
    "tokens per batch": "Distinct adapters, the base alone, and plain transformers without adapters on padded batches.",
    "text lengths": "Distinct adapters on other texts.",
}
PICTURES = {"tokens per batch": "budget", "resident adapters, zipf": "count", "knee": "knee"}


def print_report(report: Report) -> None:
    """Each axis, then the targets."""
    console = Console()
    for result in report.results:
        table = TerminalTable(result.axis.name, *HEADER)
        for row in result.rows:
            table.add_row(_name(result, row), *_cells(result, row))
        console.print(table)
    markdown.print_figures(report.figures)


def write_report(folder: Path, report: Report) -> None:
    """engine.json, engine.html, engine.md and its pictures in `folder`."""
    write_json(folder / "engine.json", report)
    draws = _draws(report)
    plots = {name: Plot(svg_of(draw, name), caption) for name, (draw, caption) in draws.items()}
    page = _page(report, plots)
    page.write(folder / "engine.html")
    files = {name: f"engine-{PICTURES[name]}.png" for name in draws}
    for name, (draw, _) in draws.items():
        save_png(draw, folder / files[name])
    pictures = {plot.svg: files[name] for name, plot in plots.items()}
    (folder / "engine.md").write_text(markdown.document(page, pictures), encoding="utf-8")


def _page(report: Report, plots: dict[str, Plot]) -> Page:
    sections = []
    for result in report.results:
        rows = [(_name(result, row), *_cells(result, row)) for row in result.rows]
        contents: list[Table | Plot] = [Table((result.axis.name, *HEADER), rows)]
        contents += [plots[result.axis.name]] if result.axis.name in plots else []
        sections.append(Section(result.axis.name.capitalize(), AXES[result.axis.name], contents))
    if report.knee:
        sections.append(_knee(report.knee, plots))
    sections += [_alone(report), _memory(report), *(_layers(name, own) for name, own in report.layers.items())]
    return Page(
        title=f"Engine throughput, {report.plan.base}",
        summary=f"Offline: no wire, no queue. {WORKLOAD}",
        machine=report.machine,
        command=report.plan.command,
        figures=report.figures,
        sections=[section for section in sections if section.contents],
    )


def _name(result: Result, row: Row) -> str:
    case, field = row.case, result.axis.field
    if field == "method":
        return case.method or case.mix
    if field == "mix" or case.mix == PADDED:
        return case.mix if field == "mix" else f"{getattr(case, field)}: {case.mix}"
    value = getattr(case, field)
    if field == "num_adapters":
        return f"{value:,}" if value else case.mix
    return f"{value}: {case.mix}"


def _cells(result: Result, row: Row) -> tuple[str, str, str]:
    ratio = "" if row.case.mix == PADDED else f"{result.against_base(row):.3f}"
    return f"{row.tokens_per_s:,.0f}", f"{row.samples_per_s:,.1f}", ratio


def _knee(knee: Knee, plots: dict[str, Plot]) -> Section:
    (reached, most), (read, copied) = knee.flops_per_s, knee.bytes_per_s
    rows = [
        (f"the base alone, batches of {knee.budget_tokens} tokens", f"{reached / 1e9:,.0f} GFLOP/s"),
        ("the fastest dense product found", f"{most / 1e9:,.0f} GFLOP/s"),
        ("share of it", f"{reached / most:.2f}"),
        ("one text reads the base's weights at", f"{read / 1e9:,.1f} GB/s"),
        ("a large copy reads and writes", f"{copied / 1e9:,.1f} GB/s"),
        ("share of it", f"{read / copied:.2f}"),
    ]
    text = (
        f"Larger batches than {knee.budget_tokens} tokens gain less than 5 % here: what a server would take as its "
        "budget at its start."
    )
    return Section("The knee, and the device's limits", text, [Table(("", "measured"), rows), plots["knee"]])


def _alone(report: Report) -> Section:
    if not report.alone[0]:
        return Section("One text alone")
    ours, theirs = (statistics.median(times) * 1000 for times in report.alone)
    rows = [("this engine, with its adapter", f"{ours:.2f} ms"), ("transformers, without", f"{theirs:.2f} ms")]
    return Section("One text alone", "One text of 32 tokens, unpadded, in turn.", [Table(("", "median"), rows)])


def _memory(report: Report) -> Section:
    if report.memory is None:
        return Section("Memory of an adapter")
    memory = report.memory
    each = [n / memory.num_adapters / 2**20 for n in (memory.resident_bytes, memory.weights_bytes)]
    rows = [("resident", f"{each[0]:.2f} MiB"), ("its weights", f"{each[1]:.2f} MiB")]
    text = f"What {memory.num_adapters:,} more adapters added to the process, for each of them."
    return Section("Memory of an adapter", text, [Table(("", "per adapter"), rows)])


def _layers(name: str, shares: Sequence[Share]) -> Section:
    def cells(label: str, share: Share) -> tuple[str, ...]:
        parts = (share.projections, share.attention, share.sites, share.other)
        return label, f"{share.layer * 1000:.2f}", *(f"{part / share.layer:.1%}" for part in parts)

    rows = [cells(str(index), share) for index, share in enumerate(shares)]
    if shares:
        total = Share(*(sum(getattr(s, f) for s in shares) for f in ("layer", "projections", "attention", "sites")))
        rows.append(cells("all", total))
    header = ("layer", "ms", "Linears of the base", "attention", "residual, norm, bottleneck", "other")
    return Section(f"By layer: {name}", "Medians over passes, on the texts of the centre.", [Table(header, rows)])


def _draws(report: Report) -> dict[str, tuple[Draw, str]]:
    found: dict[str, tuple[Draw, str]] = {}
    for result in report.results:
        if result.axis.name == "tokens per batch":
            caption = "Tokens/s by tokens per batch: distinct adapters, the base alone, plain transformers padded."
            found[result.axis.name] = (partial(_by_budget, result=result), caption)
        if result.axis.name == "resident adapters, zipf":
            found[result.axis.name] = (
                partial(_by_count, result=result),
                "Tokens/s against the number of resident adapters, as shares of the base alone.",
            )
    if report.knee:
        found["knee"] = (partial(_knee_plot, knee=report.knee), "Tokens/s of the base by tokens per batch; the knee.")
    return found


def _by_budget(axis: Axes, result: Result) -> None:
    for marker, mix in zip("os^", dict.fromkeys(row.case.mix for row in result.rows), strict=False):
        rows = [row for row in result.rows if row.case.mix == mix]
        axis.plot([r.case.budget for r in rows], [r.tokens_per_s for r in rows], marker=marker, label=mix)
    axis.set(xscale="log", xlabel="tokens per batch", ylabel="tokens/s", ylim=(0, None))
    axis.legend()


def _by_count(axis: Axes, result: Result) -> None:
    rows = [row for row in result.rows if row.case.num_adapters]
    values = [result.against_base(row) for row in rows]
    axis.plot([row.case.num_adapters for row in rows], values, marker="o")
    axis.axhline(1.0, linestyle="--", linewidth=1)
    axis.set(xscale="log", xlabel="resident adapters", ylabel="tokens/s, share of base only", ylim=(0, 1.1))


def _knee_plot(axis: Axes, knee: Knee) -> None:
    axis.plot(list(knee.rates), list(knee.rates.values()), marker="o")
    axis.axvline(knee.budget_tokens, linestyle="--", linewidth=1)
    axis.set(xscale="log", xlabel="tokens per batch", ylabel="tokens/s", ylim=(0, None))
