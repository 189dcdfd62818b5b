"""adapterd push: share an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import Json
from server.cli.output import reported, say, transfer_bar

NAME = "push"
EXAMPLE = "adapterd push adapters/reviews s3://team/adapters --tag v1"


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    to: Annotated[str, typer.Argument(help="Registry: a folder, a URL that fsspec knows, or hub:organization/name.")],
    name: Annotated[str, typer.Option(help="What to call it there; by default as its folder.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Besides main; may be repeated.")] = None,
    task: Annotated[str, typer.Option(help="What to be found by; by default from its metrics.json.")] = "",
    language: Annotated[str, typer.Option(help="Of its texts, as en.")] = "",
    private: Annotated[
        bool, typer.Option("--private", help="A new repository on the hub is for members only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send an adapter to a registry. Nobody sees it before it is whole; then main and the tags point to it."""
    from adapters_cache.sharing.artefact import describe
    from adapters_cache.sharing.hub import HubRegistry
    from adapters_cache.sharing.origins import HUB, Address, address_of, open_registry

    with reported(as_json, exit_code=2):
        address = address_of(to) if to.startswith(HUB) else Address(to, name or folder.resolve().name)
        artefact = describe(folder, address.name, task=task, language=language, tags=tuple(tag or ()))
        registry = open_registry(address)
        with transfer_bar(f"push {address.name}", is_silent=as_json) as progress:
            if isinstance(registry, HubRegistry):
                artefact = registry.push(folder, artefact, progress, is_private=private)
            else:
                registry.push(folder, artefact, progress)
    if as_json:
        tags = list(artefact.tags)
        say({"name": address.name, "revision": artefact.revision, "size_bytes": artefact.size_bytes, "tags": tags})
    else:
        typer.echo(f"{address.name}@{artefact.revision[:12]}, {artefact.size_bytes:,} bytes")
