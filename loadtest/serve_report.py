"""The serving report: a table on the terminal, JSON, a page, Markdown and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable

from loadtest import markdown, serve_plots
from loadtest.html import Plot, Report, Section, Table, write_json
from loadtest.latency import MAX_LAG_SHARE, PERCENTILES, Row
from loadtest.plots import Draw, save_png, svg_of
from loadtest.scenarios import BURSTS, MEANING, ZIPF, Plan
from loadtest.serve import Raw, ServeReport
from loadtest.workload import MEDIAN_LENGTH

HEADER = ("due/s", *PERCENTILES, "in time/s", "errors", "samples / batch", "adapters / batch", "lag")
LATE = "generator late"


@dataclass(frozen=True, slots=True)
class _Picture:
    name: str
    draw: Draw
    caption: str


def print_report(report: ServeReport) -> None:
    """Targets, the sweep's answer, and the scenarios."""
    console = Console()
    for name, rows in (("sweep", report.sweep), ("scenarios", report.scenarios)):
        if rows:
            console.print(_terminal_table(name, rows))
    for sentence in (_saturation(report), _answer(report)):
        console.print(sentence)
    markdown.print_figures(report.figures)


def _terminal_table(name: str, rows: Sequence[Row]) -> TerminalTable:
    """What fits on a terminal; milliseconds."""
    table = TerminalTable(name, "due/s", "p50", "p99", "max", "in time/s", "errors", "adapters / batch", "")
    for row in rows:
        latency = [_milliseconds(row.latency_s[quantile]) for quantile in ("p50", "p99", "max")]
        counts = [f"{row.goodput_per_s:.0f}", str(sum(row.errors.values())), f"{row.batch['adapters']:.1f}"]
        table.add_row(row.name, f"{row.rate:.0f}", *latency, *counts, LATE if row.is_generator_limited else "")
    return table


def write_report(folder: Path, report: ServeReport, raw: Raw) -> None:
    """serve.json, serve.html, serve.md and its pictures in `folder`."""
    write_json(folder / "serve.json", report)
    pictures = _pictures(report, raw)
    plots = {picture.name: Plot(svg_of(picture.draw, picture.name), picture.caption) for picture in pictures}
    own = page(report, plots)
    own.write(folder / "serve.html")
    for picture in pictures:
        save_png(picture.draw, folder / f"serve-{picture.name}.png")
    files = {plot.svg: f"serve-{name}.png" for name, plot in plots.items()}
    (folder / "serve.md").write_text(markdown.document(own, files), encoding="utf-8")


def page(report: ServeReport, plots: dict[str, Plot]) -> Report:
    return Report(
        title="Serving under load",
        summary=f"{_answer(report)} {_saturation(report)}\n\n{_how(report.plan)}",
        machine=report.machine,
        command=report.command,
        figures=report.figures,
        sections=[
            Section("Highest rate that holds the objective", _SWEEP, [*_some(plots, "sweep"), _table(report.sweep)]),
            Section(
                "Scenarios",
                "All at the same rate.",
                [_meaning(report), _table(report.scenarios), *_some(plots, "percentiles", "time")],
            ),
            Section("Where the time goes", _STAGES, _some(plots, "stages", "adapters")),
            Section("Saturation", _SATURATION, [_rounds(report)]),
        ],
    )


_SWEEP = (
    "Zipf popularity, Poisson arrivals. The rate grows until the objective is missed, then the gap is halved; what is "
    "found has held twice. A request that is refused, fails or is not answered counts as one that took for ever."
)
_STAGES = (
    "Means over answered requests, as the replies tell them. Wire and client is the rest: from when a request was due "
    "to when the server had it, and from the reply to when it was read."
)
_SATURATION = (
    "As many requests at a time as full batches need, in texts of 32 tokens with special ones, over PredictBatch; "
    "tokenization included. Offline is the same engine in a process of its own, on the same adapters and texts as "
    "token ids, in batches as large as the server's largest. The two run in turn."
)


def _how(plan: Plan) -> str:
    return (
        f"Requests go out at times drawn beforehand, whatever comes back, over {_rpc(plan)}. Latency counts from when "
        "a request was due, so that a stall is charged for every request that came due meanwhile (no coordinated "
        "omission). "
        f"A run whose generator sent later than {MAX_LAG_SHARE * plan.objective.seconds * 1000:g} ms at its own p99 is "
        f"marked “{LATE}” and proves nothing (lag is that p99). {plan.num_adapters} adapters, texts of log-normal "
        f"length, median {MEDIAN_LENGTH} tokens. In time means within {plan.objective.seconds * 1000:g} ms."
    )


def _rpc(plan: Plan) -> str:
    return "streams" if plan.rpc == "stream" else "calls of their own"


def _answer(report: ServeReport) -> str:
    objective = report.plan.objective
    if report.highest_rate is None:
        return f"Scenarios ran at {report.plan.rate:g} requests/s."
    if not report.highest_rate:
        return f"No rate that was tried holds {objective}."
    share = report.highest_rate / report.saturation.requests_per_s
    return (
        f"Up to {report.highest_rate:.0f} requests/s hold {objective}: {share:.0%} of the requests/s at saturation"
        " (in shorter texts)."
    )


def _saturation(report: ServeReport) -> str:
    served = f"At saturation the server answers {report.saturation.tokens_per_s:,.0f} tokens/s"
    ratio = report.saturation.ratio
    return f"{served}." if ratio is None else f"{served}, {ratio:.2f} of the engine's own rate offline."


def _pictures(report: ServeReport, raw: Raw) -> list[_Picture]:
    objective = report.plan.objective
    found = []
    if report.sweep:
        draw = partial(serve_plots.sweep, rows=report.sweep, objective=objective, highest_rate=report.highest_rate)
        found.append(_Picture("sweep", draw, f"{objective.quantile} at each rate tried; the band is what was found."))
    if raw:
        shown = BURSTS if BURSTS in raw else next(iter(raw))
        few = {name: raw[name] for name in (ZIPF, "uniform", "identical", BURSTS) if name in raw} or raw
        found += [
            _Picture(
                "percentiles",
                partial(serve_plots.percentiles, raw=raw, objective=objective),
                "Latency that this share of all requests stays below. A line that ends early has requests without an "
                "answer.",
            ),
            _Picture(
                "time",
                partial(serve_plots.over_time, outcomes=raw[shown], objective=objective),
                f"“{shown}”: each request at the time it was due, and how many came due (shaded).",
            ),
            _Picture("stages", partial(serve_plots.stages, rows=report.scenarios), "Mean time of a request by stage."),
            _Picture(
                "adapters",
                partial(serve_plots.adapters_per_batch, raw=few),
                "How many adapters one forward pass mixed.",
            ),
        ]
    return found


def _some(plots: dict[str, Plot], *names: str) -> list[Table | Plot]:
    return [plots[name] for name in names if name in plots]


def _meaning(report: ServeReport) -> Table:
    return Table(("scenario", "what arrives"), [(row.name, MEANING[row.name]) for row in report.scenarios], True)


def _table(rows: Sequence[Row]) -> Table:
    return Table(("run; latency in ms", *HEADER), [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    errors = ", ".join(f"{count} {code}" for code, count in row.errors.items()) or "0"
    return [
        f"{row.name} ({LATE})" if row.is_generator_limited else row.name,
        f"{row.rate:.0f}",
        *(_milliseconds(row.latency_s[name]) for name in PERCENTILES),
        f"{row.goodput_per_s:.0f}",
        errors,
        f"{row.batch['samples']:.1f}",
        f"{row.batch['adapters']:.1f}",
        _milliseconds(row.lag_p99_s),
    ]


def _milliseconds(seconds: float) -> str:
    if math.isinf(seconds):
        return "∞"
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def _rounds(report: ServeReport) -> Table:
    saturation = report.saturation
    alone = saturation.offline_tokens_per_s
    rows = [
        [
            str(number + 1),
            f"{flow.tokens_per_s:,.0f}",
            f"{alone[number]:,.0f}" if alone else "",
            f"{flow.tokens_per_s / alone[number]:.2f}" if alone else "",
            f"{flow.mean_batch_tokens:,.0f}",
            "-".join(str(length) for length in dict.fromkeys(flow.lengths)),
            str(flow.num_errors),
        ]
        for number, flow in enumerate(saturation.served)
    ]
    return Table(
        ("round", "served tokens/s", "offline tokens/s", "ratio", "tokens / batch", "tokens / text", "errors"), rows
    )
