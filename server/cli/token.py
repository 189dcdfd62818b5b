"""adapterd token: credentials for a tenant."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

NAME = "token"
EXAMPLE = "adapterd token acme"
NUM_BYTES = 32


def run(tenant: Annotated[str, typer.Argument(help="Name of the tenant.")]) -> None:
    """Make a bearer token, and print what the tenants file has to say for it. The token itself is shown this once.

    Callers send it as the metadata "authorization: Bearer TOKEN"; the clients and this command line take it from the
    variable ADAPTERD_TOKEN.
    """
    from server.tenants import PREFIX, digest_of

    token = secrets.token_urlsafe(NUM_BYTES)
    typer.echo(f"token: {token}\n")
    typer.echo(f'# in the tenants file\n[{tenant}]\ncredentials = ["{PREFIX}{digest_of(token)}"]')
    typer.echo(f'adapters = ["{tenant}-*"]')
