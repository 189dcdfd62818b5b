"""What the overload, fairness, soak and chaos benchmarks say, for the terminal and for the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import chaos, crowd, fairness, markdown, overload, soak
from loadtest.chaos import ChaosReport
from loadtest.fairness import FairnessReport
from loadtest.figures import Figure
from loadtest.html import Plot, Report, Section, Table, write_json
from loadtest.overload import OverloadReport
from loadtest.plots import COLORS, SIZE, save_png, svg_of
from loadtest.soak import SoakReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]

SERVER = f"""\
The server computes on one core, so that callers and refusals fit beside it on two. Texts of {crowd.TEXT_TOKENS} tokens,
{crowd.NUM_ADAPTERS} adapters, an open loop of unary calls without retries."""
OVERLOAD = f"""\
{SERVER} The rated load is {overload.RATED_SHARE:g} of what the server answers when far more is offered. Of each load
the first seconds are not counted: an overload begins with a queue that fills. Latency is of accepted requests, from
when each was due. The p99 of refusals is the upper edge of a bucket of `{overload.REFUSALS}`, from the arrival
of a call in the server to the answer."""
FAIRNESS = f"""\
{SERVER} Backlogged tenants ask for {fairness.WANTED:g} times what the server can answer, each. Beside a tenant that
asks for its share, a half, and then for {fairness.NOISE:g} times as much, another asks for {fairness.BUSY:.0%} of its
own share, at the same times in both runs; the figure is the median of the rounds. One that asks for little
({fairness.LIGHT:.0%}) feels that batches are full: it waits for the one that computes and the one that is formed, which
are short on a server with time to spare. One queue for all is the same server without tenants, before and after."""
SOAK = f"""\
{soak.NUM_CALLERS} callers ask without pause for {soak.NUM_ADAPTERS} adapters, of which {soak.NUM_RESIDENT} fit into
host memory; one call in {1 / soak.CANCEL_SHARE:.0f} is cancelled, adapters are loaded, unloaded, pinned and
prefetched, the tenants file is read again, and every {soak.CRASH_EVERY_S:g} seconds a client with open calls is
killed. The slope is that of a line through the memory in use, after the first {soak.WARM_UP:.0%} of the time: what the
process has of its own, without the part of its heap that is free. The server keeps that on purpose, up to 512 MB, so
that the next batch need not ask the system for it; it is as large as loads and batches ever were together."""


def print_figures(report: OverloadReport | FairnessReport | SoakReport | ChaosReport) -> None:
    markdown.print_figures(report.figures)
    if isinstance(report, ChaosReport):
        print(markdown.table(_chaos_table(report)))
    if isinstance(report, SoakReport):
        for text, count in report.seen.errors.most_common(5):
            print(f"{count} x {text}")


def write_overload(folder: Path, report: OverloadReport) -> None:
    rows = [
        (
            f"{row.factor}x",
            f"{row.offered_per_s:.1f}",
            f"{row.answered_per_s:.1f}",
            f"{row.p50_s * 1000:.0f} ms",
            f"{row.p99_s * 1000:.0f} ms",
            f"{row.num_refused:,}",
            f"{row.refusal_p99_s * 1000:.2g} ms" if row.num_refused else "",
            f"{row.memory_mib:.0f} MiB",
        )
        for row in report.rows
    ]
    header = ("load", "offered/s", "answered/s", "p50", "p99", "refused", "p99 of refusals", "memory")
    summary = (
        f"A server that answers {report.saturated_per_s:.1f} requests a second, and up to ten times its rated load."
    )
    sections = [Section("Loads", "", [Table(header, rows)]), Section("How it is measured", OVERLOAD)]
    _write(folder, "overload", "Overload", summary, report, partial(_loads, report=report), sections)


def write_fairness(folder: Path, report: FairnessReport) -> None:
    divided = [
        (row.name, *(f"{rate:.0f}" for rate in row.tokens_per_s.values()), f"{row.error:.1%}") for row in report.divided
    ]
    beside = [
        (f"{row.share:.0%} of its share", f"{row.calm_p95_s * 1000:.0f} ms", f"{row.noisy_p95_s * 1000:.0f} ms")
        for row in report.beside
    ]
    sections = [
        Section("Two backlogged tenants", "", [Table(("weights", "a, tokens/s", "b, tokens/s", "off by"), divided)]),
        Section("The other's p95", "", [Table(("it asks for", "beside a calm one", "beside a noisy one"), beside)]),
        Section("How it is measured", FAIRNESS),
    ]
    summary = f"One queue for all gives {report.fifo_tokens_per_s:.0f} tokens/s."
    _write(folder, "fairness", "Fairness", summary, report, partial(_shares, report=report), sections)


def write_soak(folder: Path, report: SoakReport) -> None:
    seen = report.seen
    done = [(what, f"{count:,}") for what, count in sorted(seen.done.items())]
    done.append(("call cancelled", f"{seen.cancelled:,}"))
    sections = [Section("What was done", "", [Table(("", "times"), done)]), Section("How it is measured", SOAK)]
    summary = f"{seen.answers:,} answers over {report.plan.seconds / 60:.0f} minutes from a real server."
    _write(folder, "soak", "A soak of the server", summary, report, partial(_memory, report=report), sections)


def write_chaos(folder: Path, report: ChaosReport) -> None:
    sections = [Section("Faults", "", [_chaos_table(report)]), Section("How it is measured", chaos.RULES)]
    _write(folder, "chaos", "Chaos", "One fault after the other, under load.", report, None, sections)


def _chaos_table(report: ChaosReport) -> Table:
    rows = [
        (row.name, row.promise, f"{row.recovered_s:.2f} s", f"{row.num_answered:,}", f"{row.num_failed:,}", row.seen)
        for row in report.rows
    ]
    return Table(("fault", "promise", "recovered after", "answered", "failed", "callers saw"), rows, is_prose=True)


def _write(
    folder: Path,
    name: str,
    title: str,
    summary: str,
    report: OverloadReport | FairnessReport | SoakReport | ChaosReport,
    draw: Draw | None,
    sections: list[Section],
) -> None:
    """name.json, name.md and where there is something to draw name.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: tuple[Figure, ...] = report.figures
    write_json(folder / f"{name}.json", asdict(report) | {"figures": figures})
    pictures: Mapping[str, str] = {}
    if draw is not None:
        plot = Plot(svg_of(draw, name, SIZE), title)
        save_png(draw, folder / f"{name}.png", SIZE)
        pictures = {plot.svg: f"{name}.png"}
        sections = [Section("Picture", "", [plot]), *sections]
    page = Report(title, summary, report.machine, report.command, figures, sections)
    (folder / f"{name}.md").write_text(markdown.document(page, pictures), encoding="utf-8")


def _loads(axis: Axes, report: OverloadReport) -> None:
    factors = [str(row.factor) for row in report.rows]
    axis.bar(factors, [row.answered_per_s for row in report.rows], color=COLORS[0], label="answered/s")
    axis.axhline(report.peak_per_s, color=COLORS[3], lw=1, ls=":")
    axis.set(xlabel="times the rated load", ylabel="answered/s", ylim=(0, None))
    other = axis.twinx()
    other.plot(factors, [row.p99_s * 1000 for row in report.rows], color=COLORS[1], marker="o", lw=1)
    other.set(ylabel="p99 of the accepted, ms", ylim=(0, None))


def _shares(axis: Axes, report: FairnessReport) -> None:
    names = [row.name for row in report.divided]
    for number, tenant in enumerate("ab"):
        left = [number * 0.4 + i for i in range(len(names))]
        axis.bar(left, [row.tokens_per_s[tenant] for row in report.divided], 0.38, color=COLORS[number], label=tenant)
    axis.set_xticks([0.2 + i for i in range(len(names))], names)
    axis.set(ylabel="tokens/s", ylim=(0, None))
    axis.legend(frameon=False)


def _memory(axis: Axes, report: SoakReport) -> None:
    samples = report.seen.samples
    at = [sample.at_s / 60 for sample in samples]
    axis.plot(at, [sample.memory_mib for sample in samples], color=COLORS[1], lw=1, label="of the process")
    in_use = [sample.memory_mib - sample.kept_mib for sample in samples]
    axis.plot(at, in_use, color=COLORS[0], lw=1, label="in use")
    axis.legend(frameon=False)
    axis.axvline(report.plan.seconds * soak.WARM_UP / 60, color=COLORS[3], lw=1, ls=":")
    axis.set(xlabel="minutes", ylabel="MiB", ylim=(0, None))
