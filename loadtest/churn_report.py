"""The report on a soak: a table on the terminal, JSON, Markdown and a picture."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import markdown
from loadtest.churn import FAILING_SHARE, NUM_CALLERS, NUM_VERSIONS, SETTLED_S, WARM_UP, ChurnReport
from loadtest.html import Plot, Report, Section, Table, write_json
from loadtest.plots import COLORS, SIZE, save_png, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULES = f"""\
{NUM_CALLERS} callers ask without pause, popular adapters more often, while one after the other is loaded, unloaded,
replaced, tried as a version beside, given other shares, pinned and prefetched; files on disk lose a bit or go, origins
are cut off or hang. Every adapter has {NUM_VERSIONS} contents; each row is compared with what the digest that its
answer carries gives alone. One request in {1 / FAILING_SHARE:.0f} asks for an adapter whose weights overflow, of which
no answer may come. An error is unexpected where nothing was done to that adapter in the {SETTLED_S:.0f} seconds
before, nor to its file on disk since it was loaded last.

Memory is what the process has of its own, resident or swapped out; the first {WARM_UP:.0%} of the time warm it up."""


def print_report(report: ChurnReport) -> None:
    """Each figure beside its target, and what was unexpected."""
    markdown.print_figures(report.figures)
    for text, count in report.seen.unexpected.most_common(5):
        print(f"{count} x {text}")
    print("\n".join(report.seen.wrong_rows[:20]))


def write_report(folder: Path, report: ChurnReport) -> None:
    """churn.json, churn.md and churn.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "churn.json", asdict(report) | {"figures": report.figures})
    draw = partial(_memory, report=report)
    plot = Plot(svg_of(draw, "churn", SIZE), "Memory of the process.")
    save_png(draw, folder / "churn.png", SIZE)
    (folder / "churn.md").write_text(markdown.document(_page(report, plot), {plot.svg: "churn.png"}), encoding="utf-8")


def _page(report: ChurnReport, plot: Plot) -> Report:
    plan, seen = report.plan, report.seen
    rows = [(what, f"{count:,}") for what, count in sorted(seen.done.items())]
    errors = [(reason, f"{count:,}") for reason, count in sorted(seen.errors.items())]
    return Report(
        title="A soak of the cache",
        summary=f"{seen.rows:,} rows in {seen.answers:,} answers over {plan.seconds / 60:.0f} minutes and {plan.num}"
        f" adapters; room for {plan.device_share:.0%} of them on the device, {plan.host_share:.0%} in host memory and"
        f" {plan.disk_share:.0%} on disk.",
        machine=report.machine,
        command=report.command,
        figures=report.figures,
        sections=[
            Section("Memory", "", [plot]),
            Section("What was done", "", [Table(("", "times"), rows)]),
            Section("What callers were told", "", [Table(("reason", "times"), errors)]),
            Section("How it is measured", RULES),
        ],
    )


def _memory(axis: Axes, report: ChurnReport) -> None:
    axis.plot(
        [at / 60 for at, _ in report.seen.memory_mib], [mib for _, mib in report.seen.memory_mib], color=COLORS[0], lw=1
    )
    axis.axvline(report.plan.seconds * WARM_UP / 60, color=COLORS[3], lw=1, ls=":")
    axis.set(xlabel="minutes", ylabel="MiB", ylim=(0, None))
