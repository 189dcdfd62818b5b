"""The report of a benchmark: a table on the terminal, JSON, Markdown and a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.engine import BASE_ONLY, DISTINCT, ONE, PADDED, Report, Row
from loadtest.methods import MethodsReport

CONTENDERS = (PADDED, BASE_ONLY, ONE, DISTINCT)
TARGETS = {(BASE_ONLY, PADDED): 1.5, (DISTINCT, BASE_ONLY): 0.95}


def print_table(report: Report) -> None:
    """Tokens/s and the ratios that count, with their targets."""
    table = Table(title=f"tokens/s, {report.machine['device']}, {report.machine['dtype']}")
    for column in ("base", "budget", *CONTENDERS, *(_ratio_name(*pair) for pair in TARGETS)):
        table.add_column(column, justify="left" if column == "base" else "right")
    for row in report.rows:
        table.add_row(row.base, str(row.budget), *(f"{row.tokens_per_s(c):,.0f}" for c in CONTENDERS), *_ratios(row))
    Console().print(table)


def write_report(folder: Path, report: Report) -> None:
    """engine.json, engine.md and engine.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    (folder / "engine.md").write_text(_markdown(report), encoding="utf-8")
    _plot(folder / "engine.png", report)


def _ratio_name(a: str, b: str) -> str:
    return f"{a} / {b}"


def _ratios(row: Row) -> list[str]:
    return [f"{row.ratio(*pair):.2f} (>= {target})" for pair, target in TARGETS.items()]


def _markdown(report: Report) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    header = ["base", "tokens per batch", *CONTENDERS, *(_ratio_name(*pair) for pair in TARGETS)]
    lines = [
        "# Engine throughput",
        "",
        f"Machine: {machine}.",
        "",
        "Workload: random tokens, texts of log-normal length, median 32, at most 256 tokens. Adapters: "
        f"{report.plan.num_adapters} `seq_bn` r16 with a two-class head. Padded batches hold rows x longest text within"
        " the budget. Tokens/s count real tokens, medians of "
        f"{report.plan.rounds} rounds in which every contender runs in turn; ratios are medians of the rounds' own.",
        "",
        f"Command: `{report.command}`",
        "",
        "| " + " | ".join(header) + " |",
        "| --- " * len(header) + "|",
    ]
    for row in report.rows:
        cells = [row.base, str(row.budget), *(f"{row.tokens_per_s(c):,.0f}" for c in CONTENDERS), *_ratios(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "![tokens/s against batch budget](engine.png)", ""])


def _plot(path: Path, report: Report) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bases = list(dict.fromkeys(row.base for row in report.rows))
    figure, axes = plt.subplots(1, len(bases), figsize=(5.2 * len(bases), 3.6), squeeze=False, layout="constrained")
    for axis, base in zip(axes[0], bases, strict=True):
        rows = [row for row in report.rows if row.base == base]
        for contender in CONTENDERS:
            label = f"{report.plan.num_adapters} {contender}" if contender == DISTINCT else contender
            values = [row.tokens_per_s(contender) for row in rows]
            axis.plot([row.budget for row in rows], values, marker="o", label=label)
        axis.set(title=base, xscale="log", xlabel="tokens per batch", ylabel="tokens/s", ylim=(0, None))
        axis.set_xticks([row.budget for row in rows], [f"{row.budget / 1024:g}k" for row in rows], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def print_figures(report: MethodsReport) -> None:
    """Each ratio beside its target."""
    table = Table("ratio", "measured", "target", title=f"{report.num_tokens} tokens, {report.machine['device']}")
    for figure in report.figures:
        table.add_row(figure.name, f"{figure.value:.2f}", figure.target + ("" if figure.is_met else "  missed"))
    Console().print(table)


def write_figures(folder: Path, report: MethodsReport) -> None:
    """methods.json and methods.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "methods.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    lines = [
        "# What methods cost",
        "",
        f"Machine: {machine}. Batches of {report.num_tokens} tokens, texts of log-normal length. Ratios of seconds in"
        " one run, every contender in turn, medians. Command: `python -m loadtest methods`.",
        "",
        "| ratio | measured | target |",
        "| --- | --- | --- |",
        *(f"| {figure.name} | {figure.value:.2f} | {figure.target} |" for figure in report.figures),
    ]
    (folder / "methods.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
