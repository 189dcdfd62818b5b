"""The pictures: they are well-formed, say what they show, and need nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from doc_pages import ROOT, links_of, pages

PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
GENERIC = ("sans-serif", "monospace")  # of a stack of fonts the last, which every reader has


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_says_what_it_shows_and_stands_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.get("viewBox") and root.get("role") == "img"
    title, about = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None and title.text and about is not None and len(about.text or "") > 60
    assert root.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
    for outside in ("<script", "<image", "<foreignObject", "@import", "@font-face", "href=", "url(http"):
        assert outside not in text, outside
    for fonts in re.findall(r"font-family: *([^;}]+)", text):
        assert fonts.split(",")[-1].strip() in GENERIC, fonts


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_light_whatever_the_page_is(path: Path) -> None:
    """A background of its own, as large as the picture."""
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    first = root.find(f"{SVG}rect")
    assert first is not None
    _, _, width, height = (root.get("viewBox") or "").split()
    assert (first.get("width"), first.get("height")) == (width, height)
    fill = (first.get("fill") or "").removeprefix("#")
    assert all(int(fill[at : at + 2], 16) > 0xE0 for at in (0, 2, 4))


def test_every_picture_is_shown() -> None:
    shown = {((ROOT / page).parent / target).resolve() for page in pages() for _, target in links_of(page)}
    assert PICTURES and not set(PICTURES) - shown
