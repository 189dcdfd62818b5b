"""The pictures of a serving report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadtest.client import STAGES, Outcomes
from loadtest.latency import WIRE, Objective, Row, batch_adapters
from loadtest.plots import COLORS, DASHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NINES = {"50 %": 2, "90 %": 10, "95 %": 20, "99 %": 100, "99.9 %": 1000}  # share of requests: 1 / (1 - share)
BIN_S = 0.1  # of arrivals
MISSED = "refused, failed or unanswered"


def percentiles(axes: Axes, raw: dict[str, Outcomes], objective: Objective) -> None:
    """Latency that a share of all requests stays below; the further right, the rarer."""
    most = 2.0
    for index, (name, outcomes) in enumerate(raw.items()):
        latency = np.sort(outcomes.latency_s) * 1000
        rarity = len(latency) / np.arange(len(latency), 0, -1)
        is_answered = np.isfinite(latency)
        dash = DASHES[index % len(DASHES)]
        axes.plot(rarity[is_answered], latency[is_answered], dash, color=COLORS[index % len(COLORS)], label=name)
        most = max(most, len(latency))
    _objective(axes, objective)
    ticks = {label: place for label, place in NINES.items() if place <= most}
    axes.set(xscale="log", yscale="log", xlim=(1, most), xlabel="share of requests", ylabel="latency, ms")
    axes.set_xticks(list(ticks.values()), list(ticks), minor=False)
    axes.minorticks_off()
    _plain_numbers(axes)
    axes.legend(ncols=2)


def over_time(axes: Axes, outcomes: Outcomes, objective: Objective) -> None:
    """Every request at the time it was due; behind them, how many came due."""
    due, latency = outcomes.schedule.at_s, outcomes.latency_s * 1000
    edges = np.arange(0, float(due.max(initial=0)) + 2 * BIN_S, BIN_S)
    counts, _ = np.histogram(due, edges)
    arrivals = axes.twinx()
    arrivals.stairs(counts / BIN_S, edges, fill=True, alpha=0.2, color=COLORS[5])
    arrivals.set(ylabel="arrivals/s", ylim=(0, 3 * max(1.0, float(counts.max(initial=0)) / BIN_S)))
    arrivals.grid(False)
    axes.set_zorder(arrivals.get_zorder() + 1)
    axes.patch.set_visible(False)
    is_answered = np.isfinite(latency)
    axes.plot(due[is_answered], latency[is_answered], ".", markersize=3, color=COLORS[0], label="a request")
    top = float(latency[is_answered].max(initial=objective.seconds * 1000)) * 1.1
    if not is_answered.all():
        missed = due[~is_answered]
        axes.plot(missed, np.full(len(missed), top), "x", color=COLORS[3], label=MISSED)
    _objective(axes, objective)
    axes.set(xlabel="due, s", ylabel="latency, ms", xlim=(0, edges[-1]), ylim=(0, top * 1.25))
    axes.legend(loc="upper left", ncols=3)


def sweep(axes: Axes, rows: Sequence[Row], objective: Objective, highest_rate: float | None) -> None:
    """The objective's quantile at each rate that was tried."""
    latency = np.array([row.latency_s[objective.quantile] for row in rows]) * 1000
    rates = np.array([row.rate for row in rows])
    seen = latency[np.isfinite(latency)]
    top = float(max(seen.max(initial=0), objective.seconds * 1000)) * 1.5
    kinds = {
        "holds": (np.array([row.holds(objective) for row in rows]), "o", COLORS[2]),
        "does not": (
            np.array([not row.holds(objective) and not row.is_generator_limited for row in rows]),
            "x",
            COLORS[3],
        ),
        "generator was late": (np.array([row.is_generator_limited for row in rows]), "s", COLORS[1]),
    }
    for label, (is_kind, marker, color) in kinds.items():
        if is_kind.any():
            axes.plot(rates[is_kind], np.minimum(latency[is_kind], top), marker, color=color, label=label)
    if highest_rate:
        axes.axvline(highest_rate, color=COLORS[2], alpha=0.4, linewidth=6)
    _objective(axes, objective)
    axes.set(
        yscale="log",
        ylim=(None, top * 1.2),
        xlim=(0, None),
        xlabel="requests due/s",
        ylabel=f"{objective.quantile}, ms",
    )
    axes.minorticks_off()
    _plain_numbers(axes)
    axes.legend(loc="upper left")


def stages(axes: Axes, rows: Sequence[Row]) -> None:
    """Where the mean answered request of each run spent its time."""
    names = [row.name for row in rows]
    left = np.zeros(len(rows))
    for index, stage in enumerate((*STAGES, WIRE)):
        widths = np.array([row.stages_s[stage] for row in rows]) * 1000
        axes.barh(names, widths, left=left, height=0.62, color=COLORS[index], label=stage)
        left = left + widths
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="mean, ms")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def adapters_per_batch(axes: Axes, raw: dict[str, Outcomes]) -> None:
    """How many distinct adapters shared a forward pass."""
    found = {name: batch_adapters(outcomes) for name, outcomes in raw.items()}
    most = max((int(values.max(initial=1)) for values in found.values()), default=1)
    edges = np.arange(0.5, most + 1.5, max(1, round(most / 24)))
    edges = np.append(edges, edges[-1] + max(1, round(most / 24))) if edges[-1] < most + 0.5 else edges
    for index, (name, values) in enumerate(found.items()):
        counts, _ = np.histogram(values, edges)
        share = 100 * counts / max(1, counts.sum())
        color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
        axes.stairs(share, edges, color=color, linestyle=dash, linewidth=1.8, label=name)
    axes.set(xlabel="distinct adapters in a batch", ylabel="% of batches", xlim=(0.5, edges[-1]), ylim=(0, None))
    axes.legend()


def _objective(axes: Axes, objective: Objective) -> None:
    axes.axhline(
        objective.seconds * 1000, color=COLORS[3], linestyle="--", linewidth=1, label=f"objective, {objective}"
    )


def _plain_numbers(axes: Axes) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis."""
    from matplotlib.ticker import LogLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
