"""Links lead somewhere: files, headings of pages, pictures."""

from __future__ import annotations

import pytest
from doc_pages import ROOT, anchors_of, links_of, pages, text_of

PAGES = pages()
# Not in every checkout: a link to them may lead nowhere.


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = [f"{page}:{line}: {target}" for line, target in links_of(page) if not leads_somewhere(page, target)]
    assert broken == []


def leads_somewhere(page: str, target: str) -> bool:
    if "://" in target or target.startswith("mailto:"):
        return True
    path, _, anchor = target.partition("#")
    there = (ROOT / page).parent / path if path else ROOT / page
    if not there.resolve().is_relative_to(ROOT):
        return False
    name = there.resolve().relative_to(ROOT).as_posix()
    if not there.exists():
        return False
    return not anchor or (there.suffix == ".md" and anchor in anchors_of(name))


def test_every_page_can_be_found_from_the_index() -> None:
    """Of those that are written by hand; benchmarks are linked by the README."""
    wanted = {page for page in PAGES if page.startswith("docs/") and not page.startswith("docs/benchmarks/")}
    linked = {
        ((ROOT / "docs" / target.partition("#")[0]).resolve().relative_to(ROOT)).as_posix()
        for _, target in links_of("docs/README.md")
        if "://" not in target
    }
    assert wanted - linked - {"docs/README.md"} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/") and "/benchmarks/" not in page])
def test_a_page_says_first_what_it_is_for(page: str) -> None:
    title, blank, about = text_of(page).splitlines()[:3]
    assert title.startswith("# ") and not blank and len(about) > 40
    assert not about.startswith(("#", "|", "```", "-", "!", "<"))


def test_anchors_are_those_of_github() -> None:
    assert {"settings", "who-waits-and-who-is-refused"} <= anchors_of("docs/operations.md")
    assert "oip-modelinferrequest" in anchors_of("docs/reference/grpc.md")
