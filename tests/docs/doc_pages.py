"""The pages of the documentation: their fenced blocks with what is said of them, their links and anchors.

A comment on the line before a block says how it is treated:

    <!-- not run: it needs docker -->      it is left out; not_run.txt lists all of those
    <!-- file: adapterd.toml -->           it is written to this file first
    <!-- output -->                        it is what the block before it prints
    <!-- fails -->                         it ends with an error

and anywhere in a page, before the block that needs it,

    <!-- stand-in: examples/adapters at adapters -->    a copy of what the reader has
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GLOBS = ("*.md", "docs/**/*.md", "deploy/**/*.md", "loadtest/*.md", "examples/**/*.md", "tests/record/*.md")
RUN_GLOBS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "deploy/**/*.md")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w+-]*)[^\n`]*$")
MARK = re.compile(r"^\s*<!-- (?P<kind>not run|file|output|fails|stand-in)(?:: (?P<value>.*?))? -->\s*$")
LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")
HEADING = re.compile(r"^#{1,6} +(?P<text>.+?) *#*$")
PROSE = ("", "text")  # nothing in such a block is for a machine


@dataclass(frozen=True)
class Block:
    """kind   what a comment before it says, or ""; of a stand-in there is no text"""

    page: str
    line: int
    language: str
    text: str
    kind: str = ""
    value: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first_line(self) -> str:
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")

    @property
    def needs_account(self) -> bool:
        """Whether it is code, and so either runs or is listed."""
        return self.language not in PROSE and self.kind != "stand-in"


def pages(globs: tuple[str, ...] = GLOBS) -> list[str]:
    found = {path.relative_to(ROOT).as_posix() for glob in globs for path in ROOT.glob(glob) if path.is_file()}
    return sorted(found)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    return list(read_blocks(page, text_of(page)))


def read_blocks(page: str, text: str) -> Iterator[Block]:
    """In order. Raises ValueError for a block without an end, and for a mark without a block."""
    fence, language, indent, start = "", "", 0, 0
    kind, value = "", ""
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            if line.strip() == fence:
                yield Block(page, start, language, "\n".join(inside) + "\n", kind, value)
                fence, kind, value = "", "", ""
            else:
                inside.append(line[min(indent, len(line) - len(line.lstrip())) :])
        elif found := FENCE.match(line):
            fence, language, indent, start = found["fence"], found["language"], len(found["indent"]), number
            inside = []
        elif found := MARK.match(line):
            if found["kind"] == "stand-in":
                yield Block(page, number, "", "", "stand-in", found["value"] or "")
            else:
                kind, value = found["kind"], found["value"] or ""
        elif line.strip() and kind:
            raise ValueError(f"{page}:{number}: text between the mark {kind!r} and its block")
    if fence or kind:
        raise ValueError(f"{page}:{start}: a block or a mark has no end")


def prose_of(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines outside of blocks."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            fence = "" if line.strip() == fence else fence
        elif found := FENCE.match(line):
            fence = found["fence"]
        else:
            yield number, line


def links_of(page: str) -> Iterator[tuple[int, str]]:
    for number, line in prose_of(text_of(page)):
        for found in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            yield number, found["target"]


def anchors_of(page: str) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, dashes for blanks, numbers for repetitions."""
    anchors: set[str] = set()
    for _, line in prose_of(text_of(page)):
        anchors.update(re.findall(r'<a (?:id|name)="([^"]+)"', line))
        if found := HEADING.match(line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", found["text"])
            anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            number = 0
            while (name := f"{anchor}-{number}" if number else anchor) in anchors:
                number += 1
            anchors.add(name)
    return anchors
