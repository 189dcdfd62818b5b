"""adapterd list: the adapters of a running server and where each of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.calls import calling
from server.cli.options import DEFAULT_SERVER, Json, Server, Token
from server.cli.output import reported, say_message

if TYPE_CHECKING:
    from adapterd.v1.adapters_pb2 import Adapter

NAME = "list"
EXAMPLE = "adapterd list --prefix snips"
MAX_LABELS_SHOWN = 3


def run(
    server: Server = DEFAULT_SERVER,
    prefix: Annotated[str, typer.Option(help="Only names that start with this.")] = "",
    as_json: Json = False,
    token: Token = None,
) -> None:
    """List adapters: name, method, task, digest, tier, bytes, labels or composition."""
    with reported(as_json), calling(server, token) as client:
        adapters = list(client.list(prefix))
    if as_json:
        for adapter in adapters:
            say_message(adapter)
    else:
        _print_table(adapters)


def _print_table(adapters: list[Adapter]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("name", "method", "task", "digest", "tier"):
        table.add_column(name, no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("labels")
    for adapter in adapters:
        table.add_row(*_row(adapter))
    Console().print(table)


def _row(adapter: Adapter) -> tuple[str, ...]:
    from adapterd.v1.adapters_pb2 import Task, Tier

    labels = ", ".join(adapter.labels[:MAX_LABELS_SHOWN])
    more = len(adapter.labels) - MAX_LABELS_SHOWN
    return (
        adapter.name,
        adapter.method,
        Task.Name(adapter.task).removeprefix("TASK_").lower() if adapter.task else "",
        adapter.digest[:12],
        Tier.Name(adapter.tier).removeprefix("TIER_").lower() + (" (pinned)" if adapter.is_pinned else ""),
        f"{max(adapter.host_bytes, adapter.device_bytes) or adapter.disk_bytes:,}",
        adapter.error or adapter.composition or labels + (f", {more} more" if more > 0 else ""),
    )
