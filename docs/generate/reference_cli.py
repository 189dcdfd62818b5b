"""docs/reference/cli.md, from the command line itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import typer.main
from reference_text import ROOT, page, paragraphs, table

from server.cli import app as command_line

WORDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}


def cli_page() -> str:
    about = "Every verb of `adapterd`, its arguments and options; `adapterd VERB --help` says the same."
    verbs: Mapping[str, Any] = vars(typer.main.get_command(command_line))["commands"]
    rows = [[f"[{name}](#{name})", _paragraphs(verb)[0]] for name, verb in verbs.items()]
    lines = [*page("Command line", "`server/cli`", about), *table(["verb", ""], rows)]
    for name, verb in verbs.items():
        lines += _verb(name, verb)
    return "\n".join(lines)


def _verb(name: str, verb: Any) -> list[str]:
    arguments = [one for one in verb.params if one.param_type_name == "argument"]
    options = [one for one in verb.params if one.param_type_name == "option" and "--help" not in one.opts]
    usage = ["adapterd", name, *(["[OPTIONS]"] if options else []), *(_usage(one) for one in arguments)]
    lines = [f"## {name}", "", "```text", " ".join(usage), "```", "", *paragraphs(*_paragraphs(verb))]
    if arguments:
        lines += table(["argument", ""], [[f"`{one.name.upper()}`", one.help or ""] for one in arguments])
    if options:
        hints = _hints(name)
        rows = [[_flags(one, hints), _default(one), one.help or ""] for one in options]
        lines += table(["option", "default", ""], rows)
    return lines + paragraphs(re.sub(r"^Example: (.*)$", r"Example: `\1`", verb.epilog or ""))


def _hints(name: str) -> dict[str, str]:
    """What each parameter of a verb's function is, in a word."""
    [function] = [one.callback for one in command_line.registered_commands if one.name == name]
    return {parameter: _word(hint) for parameter, hint in get_type_hints(inspect.unwrap(cast(Any, function))).items()}


def _word(hint: Any) -> str:
    """`hint` may be optional, or of several."""
    kinds = [kind for kind in (*get_args(hint), hint) if kind in WORDS] or [
        kind for part in get_args(hint) for kind in get_args(part) if kind in WORDS
    ]
    return WORDS[kinds[0]] if kinds else "TEXT"


def _paragraphs(verb: Any) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(verb.help or "").split("\n\n")]


def _usage(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _flags(option: Any, hints: Mapping[str, str]) -> str:
    value = "" if option.is_flag else f" {option.metavar or hints[option.name]}"
    return ", ".join(f"`{name}{value}`" for name in option.opts)


def _default(option: Any) -> str:
    if option.required:
        return "required"
    default = option.default
    if callable(default) or default is None or default is False or default in ("", ()):
        return ""
    return f"`{default.relative_to(ROOT) if isinstance(default, Path) and default.is_absolute() else default}`"
