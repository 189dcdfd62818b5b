"""adapterd search: what a registry has."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.options import Json
from server.cli.output import reported, say

NAME = "search"
EXAMPLE = "adapterd search --from s3://team/adapters --task text-classification"


def run(
    text: Annotated[str, typer.Argument(help="Part of the name.")] = "",
    source: Annotated[
        str, typer.Option("--from", help="Registry: a folder, a URL that fsspec knows, or hub:.")
    ] = "hub:",
    task: Annotated[str, typer.Option(help="As text-classification.")] = "",
    language: Annotated[str, typer.Option(help="As en.")] = "",
    base: Annotated[str, typer.Option(help="Name of the base model.")] = "",
    as_json: Json = False,
) -> None:
    """List adapters by task, language and base."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from adapters_cache.sharing.hub import HubRegistry
    from adapters_cache.sharing.origins import HUB, Address, open_registry

    with reported(as_json, exit_code=2):
        registry = open_registry(Address(HUB if source.startswith(HUB) else source, source.removeprefix(HUB)))
        if isinstance(registry, HubRegistry):
            author = source.removeprefix(HUB)
            found = registry.search(text, task=task, language=language, base=base, author=author)
        else:
            found = registry.search(text, task=task, language=language, base=base)
        table = Table("adapter", "revision", "task", "language", "base", "method", box=None, pad_edge=False)
        for artefact in found:
            if as_json:
                say(asdict(artefact))
            columns = (artefact.task, artefact.language, artefact.base, artefact.method)
            table.add_row(artefact.name, artefact.revision[:12], *columns)
        if not as_json:
            Console().print(table if table.row_count else "nothing found")
