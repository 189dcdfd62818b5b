"""A report as Markdown, for the repository, and its targets for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table as TerminalTable

from loadtest.figures import Figure
from loadtest.html import Plot, Report, Section, Table


def document(report: Report, pictures: Mapping[str, str]) -> str:
    """The same content as the page. `pictures` has the file of each plot's svg."""
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    parts = [f"# {report.title}", report.summary, f"Machine: {machine}.", f"Command: `{report.command}`"]
    if report.figures:
        rows = [(f.name, f"{f.value:.2f}", f.target, "met" if f.is_met else "missed") for f in report.figures]
        parts.append(table(Table(("figure", "measured", "target", ""), rows)))
    for section in report.sections:
        parts += _section(section, pictures)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, pictures: Mapping[str, str]) -> list[str]:
    parts = [f"## {section.heading}", section.text]
    for content in section.contents:
        if isinstance(content, Plot):
            parts.append(f"![{content.caption}]({pictures[content.svg]})")
        else:
            parts.append(table(content))
    return parts


def table(content: Table) -> str:
    lines = ["| " + " | ".join(content.header) + " |", "| --- " * len(content.header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in content.rows])


def print_figures(figures: Sequence[Figure]) -> None:
    """Each figure beside its target."""
    if not figures:
        return
    terminal = TerminalTable("figure", "measured", "target", "")
    for figure in figures:
        terminal.add_row(figure.name, f"{figure.value:.2f}", figure.target, "" if figure.is_met else "missed")
    Console().print(terminal)
