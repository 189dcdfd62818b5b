"""The page of a report, and its data as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from loadtest import plots
from loadtest.figures import at_least, at_most
from loadtest.html import Plot, Report, Section, Table, write_json
from loadtest.plots import save_png, svg_of

HOSTILE = '<script>alert("x")</script>&'
REPORT = Report(
    title=f"title {HOSTILE}",
    summary=f"summary {HOSTILE}",
    machine={f"key {HOSTILE}": f"value {HOSTILE}"},
    command=f"command {HOSTILE}",
    figures=[at_least(f"reached {HOSTILE}", 0.931, 0.9), at_most("exceeded", 2.5, 2)],
    sections=[
        Section(
            f"heading {HOSTILE}",
            f"text {HOSTILE}\n\nanother paragraph",
            [
                Table((f"column {HOSTILE}", "b"), [(f"row {HOSTILE}", f"cell {HOSTILE}")]),
                Plot("<svg/>", f"caption {HOSTILE}"),
            ],
        )
    ],
)


def test_everything_appears_and_nothing_is_taken_for_markup() -> None:
    html = REPORT.html()
    escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;"
    for what in [
        "title",
        "summary",
        "key",
        "value",
        "command",
        "reached",
        "heading",
        "text",
        "column",
        "row",
        "cell",
        "caption",
    ]:
        assert f"{what} {escaped}" in html, what
    assert "<script" not in html and "<svg/>" in html and "<p>another paragraph</p>" in html


def test_targets_are_met_or_missed_in_words() -> None:
    html = REPORT.html()
    rows = re.findall(r'<tr class="(met|missed)">.*?</tr>', html)
    assert rows == ["met", "missed"]
    assert re.search(r"<td>0\.93</td><td>&gt;= 0\.9</td><td>✓ met</td>", html)
    assert re.search(r"<td>2\.50</td><td>&lt;= 2</td><td>✗ missed</td>", html)


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    REPORT.write(tmp_path / "new" / "report.html")
    text = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"\b(src|href)=|@import|url\(", text) and "prefers-color-scheme: dark" in text


def test_pictures_scale_take_the_text_color_and_share_no_ids() -> None:
    a, b = (svg_of(lambda axes: axes.plot([1, 2], [3, 4]), name) for name in ("a", "b"))
    head = a[: a.index(">")]
    assert head.startswith("<svg") and "viewBox" in head and not re.search(r" (width|height)=", head)
    assert "currentColor" in a and plots.TEXT not in a
    ids = [set(re.findall(r'<clipPath id="([^"]+)"', svg)) for svg in (a, b)]
    assert ids[0] and not ids[0] & ids[1]


def test_the_same_picture_is_a_file_too(tmp_path: Path) -> None:
    save_png(lambda axes: axes.plot([1, 2], [3, 4]), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_comes_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match=r"pip install 'adapterd\[dev\]'"):
        svg_of(lambda axes: None, "a")


@dataclass
class Inner:
    latency_s: dict[str, float]


@dataclass
class Outer:
    rows: tuple[Inner, ...]
    path: Path
    is_met: bool


def test_json_has_plain_values_and_null_for_endless(tmp_path: Path) -> None:
    data = Outer((Inner({"p50": 0.5, "p99": float("inf"), "max": float(np.float64("nan"))}),), Path("a/b"), True)
    write_json(tmp_path / "new" / "data.json", data)
    assert json.loads((tmp_path / "new" / "data.json").read_text()) == {
        "rows": [{"latency_s": {"p50": 0.5, "p99": None, "max": None}}],
        "path": "a/b",
        "is_met": True,
    }
