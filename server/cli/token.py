"""adapterd token: credentials for a tenant."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from server.cli.options import Json
from server.cli.output import reported, say

NAME = "token"
EXAMPLE = "adapterd token acme"
NUM_BYTES = 32


def run(
    tenant: Annotated[str, typer.Argument(help="Name of the tenant.")],
    as_json: Json = False,
) -> None:
    """Make a bearer token, and print what the tenants file has to say for it. The token itself is shown this once.

    Callers send it as the metadata "authorization: Bearer TOKEN"; the clients and this command line take it from the
    variable ADAPTERD_TOKEN.
    """
    from server.tenants import PREFIX, check_name, digest_of

    with reported(as_json):
        check_name(tenant)
    token = secrets.token_urlsafe(NUM_BYTES)
    credential, adapters = f"{PREFIX}{digest_of(token)}", f"{tenant}-*"
    if as_json:
        say({"tenant": tenant, "token": token, "credentials": [credential], "adapters": [adapters]})
        return
    typer.echo(f"token: {token}\n")
    typer.echo(f'# in the tenants file\n[{tenant}]\ncredentials = ["{credential}"]')
    typer.echo(f'adapters = ["{adapters}"]')
