"""The group of all commands. With --json, mistakes in the command line itself are told as JSON too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from server.cli.output import FLAG, Failure, tell

MISTAKEN = 2  # exit code of a command line that cannot be


class Commands(TyperGroup):
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        if FLAG not in given or not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode, windows_expand_args, **extra)
        try:
            outcome = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            sys.exit(1)
        except Exception as error:
            describe = getattr(error, "format_message", None)  # of typer's own errors, whatever their classes' names
            if describe is None:
                raise
            text = f"{' '.join(str(describe()).split())} (adapterd COMMAND --help shows what there is)"
            tell(Failure(text, text, "INVALID_INPUT", "INVALID_ARGUMENT"), as_json=True)
            sys.exit(getattr(error, "exit_code", MISTAKEN))
        sys.exit(outcome if isinstance(outcome, int) else 0)
