"""adapterd traffic: versions of an adapter, and what each of them answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.calls import calling
from server.cli.completion import versions
from server.cli.options import DEFAULT_SERVER, AdapterName, Json, Server, Token
from server.cli.output import reported, say_message

if TYPE_CHECKING:
    from adapterd.v1.adapters_pb2 import Adapter

NAME = "traffic"
EXAMPLE = "adapterd traffic reviews 3f2a91bc=10"
DIGEST_CHARS = 12


def run(
    adapter: AdapterName,
    version: Annotated[
        list[str] | None,
        typer.Argument(
            help="DIGEST=PERCENT; a digest alone gets 100. Without any, what there is is shown.",
            autocompletion=versions,
        ),
    ] = None,
    as_json: Json = False,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Divide the requests for an adapter among its versions, promote one (100), or go back to one.

    What is left of 100 percent stays with the version that the name points to. Digests may be cut to 8 digits.
    """
    shares = dict(_share(text) for text in version or ())
    with reported(as_json), calling(server, token) as client:
        found = client.set_traffic(adapter, shares) if shares else client.get(adapter)
    if as_json:
        say_message(found)
    else:
        _print(found)


def _share(text: str) -> tuple[str, int]:
    digest, _, percent = text.partition("=")
    if not digest or not (percent or "100").isdecimal():
        raise typer.BadParameter(f"{text!r} is not DIGEST=PERCENT, as 3f2a91bc=10", param_hint="VERSION")
    return digest, int(percent or 100)


def _print(adapter: Adapter) -> None:
    from rich.console import Console
    from rich.table import Table

    from adapterd.v1.adapters_pb2 import Tier

    table = Table("version", "percent", "tier", box=None, pad_edge=False)
    for version in adapter.versions:
        table.add_row(version.digest[:DIGEST_CHARS], str(version.percent), Tier.Name(version.tier)[5:].lower())
    if not adapter.versions:
        table.add_row(adapter.digest[:DIGEST_CHARS] or "not read yet", "100", Tier.Name(adapter.tier)[5:].lower())
    Console().print(table)
