"""The report on scrapes: a table on the terminal, JSON and Markdown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from loadtest import markdown
from loadtest.html import Report, Section, Table, write_json
from loadtest.scrape import DEVICE_BYTES, HOST_BYTES, NUM_SCRAPES, ScrapeReport

SUMMARY = f"""\
A server of its own on a base of one layer. Every adapter, of twelve methods, is asked for once; host memory has room
for {HOST_BYTES >> 20} MiB and the device for {DEVICE_BYTES >> 20} MiB of them, so most come and go. Then `/metrics` is
asked for {NUM_SCRAPES} times on an otherwise idle server, connection included, as Prometheus asks with exemplars
(OpenMetrics) and without (text)."""
COLUMNS = ("adapters asked for", "format", "kB", "series", "ms, median", "ms, slowest")


def print_scrape(report: ScrapeReport) -> None:
    markdown.print_figures(report.figures)
    print(markdown.table(_table(report)))


def write_scrape(folder: Path, report: ScrapeReport) -> None:
    """scrape.json and scrape.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "scrape.json", asdict(report) | {"figures": report.figures})
    sections = [Section("Before and after", "", [_table(report)])]
    page = Report("A scrape after many adapters", SUMMARY, report.machine, report.command, report.figures, sections)
    (folder / "scrape.md").write_text(markdown.document(page, {}), encoding="utf-8")


def _table(report: ScrapeReport) -> Table:
    rows = [
        (
            f"{row.num_asked:,}",
            row.format,
            f"{row.size_kb:.1f}",
            f"{row.num_series:,}",
            f"{row.median_ms:.1f}",
            f"{row.slowest_ms:.1f}",
        )
        for row in report.rows
    ]
    return Table(COLUMNS, rows)
