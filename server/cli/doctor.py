"""adapterd doctor: what keeps a configuration from being served, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import options
from server.cli.calls import quiet_grpc
from server.cli.output import quiet_stdout, say
from server.errors import InvalidInput

if TYPE_CHECKING:
    from server.config import ServerConfig
    from server.doctor.finding import Finding

NAME = "doctor"
EXAMPLE = "adapterd doctor --config adapterd.toml"
NAME_CHARS = 13  # of the longest check
COLORS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def run(
    context: typer.Context,
    config: options.Config = None,
    base: options.Base = None,
    adapters: options.AdapterFolders = None,
    registry: options.Registry = None,
    disk: options.Disk = None,
    composition: options.Composition = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    batch_tokens: options.BatchTokens = None,
    host: options.Host = None,
    port: options.Port = None,
    http_host: options.HttpHost = None,
    http_port: options.HttpPort = None,
    tenants: options.Tenants = None,
    allow_anonymous: options.AllowAnonymous = None,
    tls_certificate: options.TlsCertificate = None,
    tls_key: options.TlsKey = None,
    tls_client_ca: options.TlsClientCa = None,
    frontends: options.Frontends = None,
    assign: options.Assign = None,
    server: Annotated[
        str, typer.Option(help="host:port of a server that runs, to be looked at in place of the ports.")
    ] = "",
    token: options.Token = None,
    as_json: options.Json = False,
) -> None:
    """Check what adapterd serve would need with the same options: environment, device, base, adapters, disk, who may
    call, ports. Exit code 1 if anything is a problem.
    """
    with _quiet_libraries(), quiet_stdout(as_json):
        found = list(_shown(_examined(context, server, token), is_silent=as_json))
    counts = {state: sum(finding.state == state for finding in found) for state in ("problem", "warning")}
    if as_json:
        numbers = {"num_problems": counts["problem"], "num_warnings": counts["warning"]}
        say({**numbers, "findings": [asdict(finding) for finding in found]})
    else:
        typer.echo(_summary(counts))
    if counts["problem"]:
        raise typer.Exit(1)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """What they log of a network that is not there would stand between the findings, which say it."""
    quiet_grpc()
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _examined(context: typer.Context, server: str, token: str | None) -> Iterator[Finding]:
    from server.doctor.examine import examine, examine_environment

    config, about_config = _configured(context)
    yield about_config
    yield from examine_environment()
    if config is not None:
        yield from examine(config, server=server, token=token)


def _configured(context: typer.Context) -> tuple[ServerConfig | None, Finding]:
    """The configuration, and what is wrong with it. Where only the tenants are missing the rest is examined too."""
    from server.doctor.finding import ok, problem

    try:
        return options.server_config(context), ok("configuration", _named(context))
    except InvalidInput as error:
        remedy = "correct the option, or the file that --config names; docs/operations.md lists the settings"
        finding = problem("configuration", error.message, remedy)
    try:
        config = options.server_config(context, allow_anonymous=True)
    except InvalidInput:
        return None, finding
    remedy = "--tenants FILE (api.tenants), --host 127.0.0.1 (api.host), or in words --allow-anonymous"
    return config, problem("configuration", finding.message, remedy)


def _named(context: typer.Context) -> str:
    path = context.params["config"]
    return f"{path} can be read" if path else "of the options alone, no --config"


def _shown(findings: Iterable[Finding], *, is_silent: bool) -> Iterator[Finding]:
    """Each is printed when it comes, for some take seconds."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for finding in findings:
        if not is_silent:
            table = Table.grid(padding=(0, 1))
            table.add_column(width=len("problem"))
            table.add_column(width=NAME_CHARS)
            table.add_column(overflow="fold")
            table.add_row(Text(finding.state, COLORS[finding.state]), finding.name, Text(finding.message))
            if finding.remedy:
                table.add_row("", "", Text(f"-> {finding.remedy}", "bold"))
            console.print(table)
        yield finding


def _summary(counts: dict[str, int]) -> str:
    shown = [f"{number} {what}{'s' if number != 1 else ''}" for what, number in counts.items() if number]
    return f"\n{', '.join(shown)}" if shown else "\nnothing is wrong"
