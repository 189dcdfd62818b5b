"""docs/reference/configuration.md, from the fields of server/config.py and the comments beside them."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from reference_text import page, paragraphs, table

from server import config
from server.cli.settings import SECTIONS

TYPES = {"str": "text", "int": "integer", "float": "number", "bool": "boolean"}


def configuration_page() -> str:
    lines = page(
        "Configuration",
        "`server/config.py`",
        "Every setting of `adapterd serve`: in a TOML file (`--config`), as `--set section.key=value`, and the common"
        " ones as [flags](cli.md#serve). [operations.md](../operations.md) says how they work together.",
    )
    comments = _comments()
    for name, section in SECTIONS.items():
        rows = [
            [
                f"`{field.name}`",
                TYPES.get(str(field.type), "list of texts"),
                f"`{_toml(field.default)}`",
                comments[section.__name__, field.name],
            ]
            for field in fields(section)
        ]
        about = inspect.cleandoc(section.__doc__ or "")
        lines += [f"## {name}", "", *paragraphs(about), *table(["key", "type", "default", ""], rows)]
    return "\n".join(lines)


def _comments() -> dict[tuple[str, str], str]:
    """Of each field of each class."""
    source = inspect.getsource(config)
    lines = source.splitlines()
    return {
        (node.name, field.target.id): _comment(lines, field)
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _comment(lines: Sequence[str], field: ast.AnnAssign) -> str:
    """At the end of the line, or on the lines above."""
    assert field.end_lineno is not None
    _, mark, behind = lines[field.end_lineno - 1].rpartition("  # ")
    if mark:
        return behind
    above: list[str] = []
    at = field.lineno - 2
    while lines[at].strip().startswith("# "):
        above.insert(0, lines[at].strip().removeprefix("# "))
        at -= 1
    return " ".join(above)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    return json.dumps(value)
