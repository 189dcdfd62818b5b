"""The report on a fleet: tables on the terminal, JSON, a page, Markdown and a picture."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import markdown
from loadtest.fleet.bench import FleetReport
from loadtest.fleet.hotswap import KEPT
from loadtest.html import Plot, Report, Section, Table, write_json
from loadtest.plots import COLORS, DASHES, SIZE, save_png, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULES = f"""\
A small BERT (2 layers, 128 channels), so that what surrounds the device's work shows, and adapters of twelve methods
and widths, each with weights of its own. The engine runs in one process without the wire: name to digest, tiers, queue,
batches, device. Requests have 16 tokens. The most per second is what 32 callers get who ask again as soon as they are
answered; latencies are of an open loop, from when a request was due.

Tiers are those of the moment at which a request of the closed loop comes. What is on the device is in host memory too.
On a CPU a slot is the host tier's own buffer, so placing an adapter prepares views of it.

Swapping is what one does without such a server: one active adapter, the last {KEPT} kept in memory, one request after
the other; an adapter that is not kept is read from its checkpoint. Once on our own modules and readers, once with
AdapterHub's library (load_adapter, set_active_adapters, delete_adapter) in its own process.

The eviction policies are replayed without any model: 10,000 adapters of 0.25 to 4 MiB, room for a fifth of the bytes,
200,000 requests. Cost is what loading what was not there takes, in MiB that could be read meanwhile, per request."""


def print_report(report: FleetReport) -> None:
    """Each figure beside its target."""
    markdown.print_figures(report.figures)


def write_report(folder: Path, report: FleetReport) -> None:
    """fleet.json, fleet.html, fleet.md and fleet.png in `folder`."""
    write_json(folder / "fleet.json", asdict(report) | {"figures": report.figures})
    draw = partial(_working_sets, report=report)
    plot = Plot(svg_of(draw, "fleet", SIZE), "Requests/s by how many adapters are in use.")
    page = _page(report, plot)
    page.write(folder / "fleet.html")
    save_png(draw, folder / "fleet.png", SIZE)
    (folder / "fleet.md").write_text(markdown.document(page, {plot.svg: "fleet.png"}), encoding="utf-8")


def _page(report: FleetReport, plot: Plot) -> Report:
    plan = report.plan
    return Report(
        title=f"{plan.num:,} adapters on one base",
        summary=f"Room for {plan.num_host:,} adapters in host memory and {plan.num_device} on the device; one takes"
        f" {report.mean_bytes / 1024:.0f} KiB on average. Converted from checkpoints at"
        f" {report.converted_per_s:.0f} adapters/s.",
        machine=report.machine,
        command=report.command,
        figures=report.figures,
        sections=[
            Section(
                "Popularity",
                f"Latencies are of an open loop with {report.rate:.0f} requests a second, the same for all.",
                [_scenarios(report)],
            ),
            Section("Loads", "", [_loads(report)]),
            Section("Beside one active adapter", report.library_error, [_swaps(report), plot]),
            Section("Who goes when there is no room", "", [_policies(report)]),
            Section("How it is measured", RULES),
        ],
    )


def _scenarios(report: FleetReport) -> Table:
    header = ("requests", "most per s", "on device", "in host memory", "on disk", "at origin", "p50", "p95", "p99")
    return Table(
        header,
        [
            (
                row.name,
                f"{row.per_s:,.0f}",
                *(f"{share:.1%}" for share in row.tiers.values()),
                *(f"{seconds * 1e3:.1f} ms" for seconds in (row.p50, row.p95, row.p99)),
            )
            for row in report.scenarios
        ],
    )


def _loads(report: FleetReport) -> Table:
    rows = [(t.name, f"{t.num:,}", f"{t.p50 * 1e3:.2f} ms", f"{t.p95 * 1e3:.2f} ms") for t in report.loads]
    hot = report.hot
    beside = f"{hot.beside * 1e3:.1f} ms beside {hot.loads_per_s:.0f} cold loads/s"
    text = f"{hot.alone * 1e3:.1f} ms alone, {beside}"
    return Table(("load", "number", "p50", "p95"), [*rows, ("p99 of hot requests", "", text, "")])


def _swaps(report: FleetReport) -> Table:
    header = ("adapters in use", "ours, requests/s", "swapped, our modules", "ratio", "swapped, AdapterHub", "ratio")
    rows = []
    for swap in report.swaps:
        cells = [f"{swap.num:,}", f"{swap.ours:,.0f}", f"{swap.swapped:,.0f}", f"{swap.ours / swap.swapped:.1f}"]
        cells += [f"{swap.library:,.1f}", f"{swap.ours / swap.library:.1f}"] if swap.library else ["", ""]
        rows.append(cells)
    return Table(header, rows)


def _policies(report: FleetReport) -> Table:
    header = ("requests", "hit rate, ours", "hit rate, LRU", "cost, ours", "cost, LRU")
    return Table(
        header,
        [
            (row.popularity, f"{row.hit_rate:.1%}", f"{row.lru_hit_rate:.1%}", f"{row.cost:.2f}", f"{row.lru_cost:.2f}")
            for row in report.policies
        ],
    )


def _working_sets(axis: Axes, report: FleetReport) -> None:
    numbers = [swap.num for swap in report.swaps]
    ours, swapped = [swap.ours for swap in report.swaps], [swap.swapped for swap in report.swaps]
    axis.plot(numbers, ours, marker="o", color=COLORS[0], ls=DASHES[0], label="adapterd")
    axis.plot(
        numbers, swapped, marker="s", color=COLORS[1], ls=DASHES[1], label=f"one active, {KEPT} kept, our modules"
    )
    library = [(swap.num, swap.library) for swap in report.swaps if swap.library]
    axis.plot(*zip(*library, strict=True), marker="^", color=COLORS[2], ls=DASHES[2], label="the same, AdapterHub")
    axis.set(xscale="log", yscale="log", xlabel="adapters in use", ylabel="requests/s")
    axis.legend()
