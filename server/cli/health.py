"""adapterd health: is a server serving? For container health checks."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "health"
EXAMPLE = "adapterd health --server 127.0.0.1:50051"


def run(
    server: Annotated[str, typer.Option(help="host:port of the server.")] = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it.")] = 3.0,
) -> None:
    """Exit 0 if the server serves, 1 if it does not."""
    from adapterd import Client, Error

    with Client(server, max_retries=0) as client:
        try:
            client.wait_ready(timeout)
        except Error as error:
            typer.echo(f"not serving: {error.message}", err=True)
            raise typer.Exit(1) from error
    typer.echo("serving")
