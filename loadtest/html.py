"""One page that holds a whole report: no other file, no script, no network. And the same data as JSON.

Report(
    title="Serving",
    summary="What came out, in a sentence or two.",
    machine=machine("cpu", "float32"),
    command="python -m loadtest serve --quick",
    figures=[at_least("served / offline", 0.93, 0.9)],
    sections=[
        Section("Latency", "How it was measured.", [Table(("rate", "p99"), [("100", "12 ms")]), Plot(svg, "p99")]),
    ],
).write(Path("serve.html"))
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from loadtest.figures import Figure

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text; the first column names the row. `is_prose`: the others hold sentences, not numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_prose: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """`svg` from `loadtest.plots`: taken as it is. `caption` is text."""

    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """`text` may have several paragraphs, with empty lines between them."""

    heading: str
    text: str = ""
    contents: Sequence[Table | Plot] = ()


@dataclass(frozen=True, slots=True)
class Report:
    title: str
    summary: str
    machine: Mapping[str, str]
    command: str
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")

    def html(self) -> str:
        facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in self.machine.items())
        return _PAGE.substitute(
            title=escape(self.title),
            summary=_paragraphs(self.summary),
            targets=_targets(self.figures),
            sections="".join(_section(section) for section in self.sections),
            machine=f"<dl>{facts}</dl>",
            command=escape(self.command),
        )


def write_json(path: Path, data: Any) -> None:
    """Dataclasses, mappings and sequences of them. JSON knows no endless numbers: they become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(data: Any) -> Any:
    if is_dataclass(data) and not isinstance(data, type):
        return _plain(asdict(data))
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data if isinstance(data, str | int | None) else str(data)


def _targets(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    rows = "".join(
        f'<tr class="{"met" if figure.is_met else "missed"}"><th scope="row">{escape(figure.name)}</th>'
        f"<td>{figure.value:.2f}</td><td>{escape(figure.target)}</td>"
        f"<td>{'✓ met' if figure.is_met else '✗ missed'}</td></tr>"
        for figure in figures
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("figure", "measured", "target", ""))
    return (
        f'<section><h2>Targets</h2><div class="wide"><table class="targets"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _section(section: Section) -> str:
    contents = "".join(_table(part) if isinstance(part, Table) else _plot(part) for part in section.contents)
    return f"<section><h2>{escape(section.heading)}</h2>{_paragraphs(section.text)}{contents}</section>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    kind = ' class="prose"' if table.is_prose else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _plot(plot: Plot) -> str:
    return f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())
