"""What the benchmark of replicas says, for the terminal and for the repository."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import markdown
from loadtest.cluster import CALLERS, COUNTS, FILLING, HOT_CALLERS, OTHER_CALLERS, ClusterReport
from loadtest.html import Plot, Report, Section, Table, write_json
from loadtest.plots import COLORS, SIZE, save_png, svg_of
from loadtest.replicas import BATCH_SAMPLES, DEVICE_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURED = f"""\
Every replica is a complete server, a process with its own caches over one folder of adapters; all of them, and the one
process that calls them, share this machine. The device of each is simulated: the real engine computes a batch of at
most {BATCH_SAMPLES} requests on a base of one small layer, then the device counts as busy until the batch has taken its
time. So the devices add up although the machine's cores do not, and everything else is real: gRPC, the client's ring
hash, admission, scheduling, caches. Callers keep {FILLING} requests in flight for each replica (a closed loop, adapters
drawn evenly); a tenth of the adapters ({DEVICE_SHARE:.0%}) fits onto one device. The limit of the machine is the
most that it answered, in any row or with {COUNTS[-1]} replicas whose devices take no time.

Hit rates are of look-ups on the devices, Zipf(1), {COUNTS[-1]} replicas, {CALLERS} callers. For the hot adapter
{HOT_CALLERS} callers ask for one adapter and {OTHER_CALLERS} for all others; without spill-over no replica is passed
by. Each publish is of an adapter that half of {CALLERS} callers ask for, at any of {COUNTS[-1]} replicas by chance: all
answer for it. Times of the last old reply count from when Publish had answered; the limit is a look at the orders and
half a second for the load."""


def print_report(report: ClusterReport) -> None:
    markdown.print_figures(report.figures)
    for section in _sections(report):
        for content in section.contents:
            if isinstance(content, Table):
                print(markdown.table(content), end="\n\n")


def write_report(folder: Path, report: ClusterReport) -> None:
    """cluster.json, cluster.md and cluster.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "cluster.json", asdict(report) | {"figures": report.figures})
    draw = partial(_throughput, report=report)
    plot = Plot(svg_of(draw, "cluster", SIZE), "Answers/s by replicas; the dotted line is the machine's own limit")
    save_png(draw, folder / "cluster.png", SIZE)
    sections = [Section("Picture", "", [plot]), *_sections(report), Section("How it is measured", MEASURED)]
    summary = f"This machine answers {report.limit_per_s:,.0f} requests a second at most, however fast devices are."
    page = Report("Replicas", summary, report.machine, report.command, report.figures, sections)
    (folder / "cluster.md").write_text(markdown.document(page, {plot.svg: "cluster.png"}), encoding="utf-8")


def _sections(report: ClusterReport) -> list[Section]:
    rows = [
        (
            f"{row.batch_s * 1000:g} ms",
            f"{row.num_replicas}",
            f"{row.device_per_s:,.0f}",
            f"{row.answered_per_s:,.0f}",
            f"{row.linear:.2f}",
            f"{row.busiest:.0%}",
            f"{row.num_failed}",
        )
        for row in report.rows
    ]
    header = ("batch takes", "replicas", "devices could, /s", "answered/s", "of linear", "busiest has", "failed")
    hits = [(row.routing, f"{row.hit_rate:.1%}") for row in report.hits]
    hot = [
        (
            row.spill,
            f"{row.replicas}",
            f"{row.hot_per_s:.0f}",
            f"{row.hot_p95_s * 1000:.0f} ms",
            f"{row.others_per_s:.0f}",
            f"{row.others_p95_s * 1000:.0f} ms",
        )
        for row in report.hot
    ]
    published = [
        (
            f"{number}",
            f"{row.took_s * 1000:.0f} ms",
            f"{row.last_old_s * 1000:.0f} ms",
            f"{row.num_replies:,}",
            f"{row.others}",
            f"{row.num_failed}",
        )
        for number, row in enumerate(report.published, 1)
    ]
    published_header = ("publish", "took", "last old reply after", "replies", "of neither version", "failed")
    hot_header = ("spill-over", "replicas that answer it", "hot, /s", "its p95", "others, /s", "their p95")
    return [
        Section("Throughput", "", [Table(header, rows)]),
        Section("Hit rate", "", [Table(("requests go", "found on the device"), hits)]),
        Section("One hot adapter", "", [Table(hot_header, hot)]),
        Section("Publishing under load", "", [Table(published_header, published)]),
    ]


def _throughput(axis: Axes, report: ClusterReport) -> None:
    for number, batch_s in enumerate(report.plan.batch_s):
        rows = [row for row in report.rows if row.batch_s == batch_s]
        counts = [row.num_replicas for row in rows]
        color = COLORS[number % len(COLORS)]
        axis.plot(counts, [row.answered_per_s for row in rows], marker="o", color=color, label=f"{batch_s * 1000:g} ms")
        axis.plot(counts, [rows[0].answered_per_s * count for count in counts], color=color, lw=0.8, ls="--")
    axis.axhline(report.limit_per_s, color="gray", lw=1, ls=":")
    axis.set(
        xlabel="replicas", ylabel="answered/s", ylim=(0, 1.3 * report.limit_per_s), xticks=list(report.plan.counts)
    )
    axis.legend(title="a batch takes", frameon=False)
