"""Options that several commands have, and what the server's options set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.calls import DEFAULT_SERVER as DEFAULT_SERVER
from server.cli.completion import adapter_names, bases, devices, dtypes, setting_keys
from server.cli.settings import load_config
from server.config import ServerConfig

TOKEN_VARIABLE = "ADAPTERD_TOKEN"

Server = Annotated[str, typer.Option(help="host:port of the server.")]
Token = Annotated[
    str | None,
    typer.Option(
        envvar=TOKEN_VARIABLE, help="Bearer token; others on this machine see options, and do not see the variable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON and nothing else on stdout; errors as JSON on stderr.")]
AdapterName = Annotated[str, typer.Argument(help="Name of the adapter.", autocompletion=adapter_names)]

# What `serve` takes, and `doctor` with it.
Config = Annotated[Path | None, typer.Option(help="TOML file; flags override it.")]
Base = Annotated[str | None, typer.Option(help='"minilm" (embedded), a directory, or a hub id.', autocompletion=bases)]
AdapterFolders = Annotated[
    list[Path] | None, typer.Option(help="Folder whose sub-folders are adapters; may be repeated.")
]
Registry = Annotated[
    list[str] | None,
    typer.Option(help="Further origin: a registry's folder or URL, hub:organization; may be repeated."),
]
Disk = Annotated[
    Path | None, typer.Option(help="Folder for converted adapters and what is known of them, kept over restarts.")
]
Composition = Annotated[
    list[str] | None, typer.Option(help='A name for a composition: "name = Stack(de, ner)"; may be repeated.')
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1", autocompletion=devices)]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16", autocompletion=dtypes)]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens that a batch may have; without it, measured at start.")]
Host = Annotated[
    str | None, typer.Option(help="Address to listen on; other than loopback needs --tenants or --allow-anonymous.")
]
Port = Annotated[int | None, typer.Option(help="gRPC; 0 takes a free one.")]
HttpHost = Annotated[
    str | None,
    typer.Option(
        help="Address of console, HTTP API and metrics; other than loopback needs --tenants or --allow-anonymous."
    ),
]
HttpPort = Annotated[int | None, typer.Option(help="Console, HTTP API and metrics; 0 takes a free one.")]
Tenants = Annotated[
    Path | None, typer.Option(help="File that declares who may call and use what; read again when it changes.")
]
AllowAnonymous = Annotated[
    bool | None, typer.Option("--allow-anonymous", help="Let anyone who reaches the port do everything.")
]
TlsCertificate = Annotated[Path | None, typer.Option(help="PEM file with the server's certificate chain.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file with its key.")]
TlsClientCa = Annotated[Path | None, typer.Option(help="PEM file; callers then need a certificate that it has signed.")]
Frontends = Annotated[int | None, typer.Option(help="gRPC processes on the port; 0 answers calls in the engine's own.")]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other knob: --set cache.device_bytes=67108864",
        metavar="KEY=VALUE",
        autocompletion=setting_keys,
    ),
]

SETTINGS: Mapping[str, str] = {
    "base": "model.base",
    "device": "model.device",
    "dtype": "model.dtype",
    "batch_tokens": "scheduler.max_batch_tokens",
    "adapters": "cache.adapters",
    "registry": "cache.registries",
    "disk": "cache.disk_path",
    "composition": "cache.compositions",
    "host": "api.host",
    "port": "api.port",
    "http_host": "api.http_host",
    "http_port": "api.http_port",
    "tenants": "api.tenants",
    "allow_anonymous": "api.allow_anonymous",
    "tls_certificate": "api.tls_certificate",
    "tls_key": "api.tls_key",
    "tls_client_ca": "api.tls_client_ca",
    "frontends": "api.frontends",
}
TEXTS = ("disk", "tenants", "tls_certificate", "tls_key", "tls_client_ca")  # paths that settings hold as text


def server_config(context: typer.Context, **forced: Any) -> ServerConfig:
    """The configuration that a command's options ask for. Raises InvalidInput.

    forced   settings by option that are taken whatever the options say
    """
    given = {**context.params, **forced}
    overrides = {key: _value(name, given[name]) for name, key in SETTINGS.items()}
    path = given["config"]
    return load_config(Path(path) if path else None, overrides, given["assign"] or ())


def _value(name: str, value: Any) -> Any:
    """None for what was not given, which is how an option that may be repeated and was not looks too."""
    if value is None or value == () or value == []:
        return None
    return str(value) if name in TEXTS else value
