"""adapterd health: is a server serving? For container health checks."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.calls import calling
from server.cli.options import DEFAULT_SERVER, Json, Server
from server.cli.output import reported, say

NAME = "health"
EXAMPLE = "adapterd health --server 127.0.0.1:50051"


def run(
    server: Server = DEFAULT_SERVER,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Exit 0 if the server serves, 1 if it does not."""
    with reported(as_json, prefix="not serving: "), calling(server, max_retries=0) as client:
        client.wait_ready(timeout)
    if as_json:
        say({"server": server, "is_serving": True})
    else:
        typer.echo("serving")
