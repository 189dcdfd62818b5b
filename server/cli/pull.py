"""adapterd pull: bring a shared adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import Json
from server.cli.output import reported, say, transfer_bar

NAME = "pull"
EXAMPLE = "adapterd pull reviews@v1 --from s3://team/adapters --output adapters"


def run(
    adapter: Annotated[
        str, typer.Argument(help="name@revision of --from; hub:organization/name@revision, or AdapterHub's @ukp/name.")
    ],
    source: Annotated[str, typer.Option("--from", help="Registry: a folder or a URL that fsspec knows.")] = "",
    output: Annotated[Path, typer.Option(help="Folder that the adapter's own folder is put into.")] = Path("adapters"),
    name: Annotated[str, typer.Option(help="What to call it here; by default as there.")] = "",
    as_json: Json = False,
) -> None:
    """Bring an adapter into a folder that a server reads. It appears there whole, with its checksums verified."""
    from adapters_cache.sharing.origins import address_of, open_registry

    with reported(as_json, exit_code=2):
        address = address_of(adapter, source)
        registry = open_registry(address)
        artefact = registry.find(address.name, address.revision)
        with transfer_bar(f"pull {address.name}", is_silent=as_json) as progress:
            path = registry.pull(artefact, output / (name or address.name.rpartition("/")[2]), progress)
    if as_json:
        facts = {"name": address.name, "revision": artefact.revision, "size_bytes": artefact.size_bytes}
        say({"folder": str(path), **facts})
    else:
        typer.echo(f"{path}: {address.name}@{artefact.revision[:12]}, {artefact.size_bytes:,} bytes")
