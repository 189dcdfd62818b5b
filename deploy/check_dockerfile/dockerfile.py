"""The instructions of a Dockerfile, and the stages that they make."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class Failed(Exception):
    """A step did, or what it made does not serve."""


@dataclass(frozen=True, slots=True)
class Step:
    line: int
    name: str
    text: str


Stages = Mapping[str, tuple[str, list[Step]]]


def parse(text: str) -> list[Step]:
    """The instructions, continued lines joined and comments dropped."""
    steps: list[Step] = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        start = start or number
        parts.append(line.rstrip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            name, _, rest = " ".join(parts).partition(" ")
            steps.append(Step(start, name.upper(), rest.strip()))
            parts, start = [], 0
    return steps


def stages(steps: Sequence[Step]) -> Stages:
    """Of every named stage what it is FROM and its steps; "" has what stands before the first."""
    found: dict[str, tuple[str, list[Step]]] = {"": ("", [])}
    name = ""
    for step in steps:
        if step.name == "FROM":
            parent, _, name = step.text.partition(" AS ")
            found[name] = (parent, [])
        else:
            found[name][1].append(step)
    return found


def order(target: str, found: Stages) -> list[str]:
    """The stages that a target is made of, each after those that it takes something from."""
    if target not in found:
        raise Failed(f"there is no target {target!r}; there are {', '.join(filter(None, found))}")
    return list(dict.fromkeys(_needed(target, found)))


def _needed(target: str, found: Stages) -> Iterator[str]:
    parent, steps = found[target]
    sources = [source for step in steps for source in re.findall(r"--from=(\S+)", step.text)]
    for name in (parent, *sources):
        if name in found:
            yield from _needed(name, found)
    yield target


def expanded(text: str, values: Mapping[str, str]) -> str:
    """With the values of its variables. Raises KeyError for one that has none."""
    return VARIABLE.sub(lambda match: values[match[1] or match[2]], text)


def is_let_through(source: str, ignore: Path) -> bool:
    """Whether the context has a file or folder; of .dockerignore's lines the last that fits decides."""
    is_in = True
    for line in ignore.read_text().split():
        pattern = line.removeprefix("!").removeprefix("**/")
        if fnmatch.fnmatch(source.split("/")[0], pattern):
            is_in = line.startswith("!")
    return is_in
