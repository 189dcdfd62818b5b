"""adapterd serve: run the server until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.settings import load_config
from server.errors import AdapterdError

if TYPE_CHECKING:
    from server.config import ServerConfig

NAME = "serve"
FAULT_LINGER_S = 0.5  # until callers whose requests were in the air have heard of it
EXAMPLE = "adapterd serve --base minilm --adapters examples/adapters --port 50051"


def run(
    config: Annotated[Path | None, typer.Option(help="TOML file; flags override it.")] = None,
    base: Annotated[str | None, typer.Option(help='"minilm" (embedded), a directory, or a hub id.')] = None,
    adapters: Annotated[
        list[Path] | None, typer.Option(help="Folder whose sub-folders are adapters; may be repeated.")
    ] = None,
    registry: Annotated[
        list[str] | None,
        typer.Option(help="Further origin: a registry's folder or URL, hub:organization; may be repeated."),
    ] = None,
    disk: Annotated[
        Path | None, typer.Option(help="Folder for converted adapters and what is known of them, kept over restarts.")
    ] = None,
    composition: Annotated[
        list[str] | None, typer.Option(help='A name for a composition: "name = Stack(de, ner)"; may be repeated.')
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens that a batch may have; without it, measured at start.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; other than loopback needs --tenants or --allow-anonymous.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="gRPC; 0 takes a free one.")] = None,
    http_host: Annotated[str | None, typer.Option(help="Address of the metrics, which name tenants.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Metrics; 0 takes a free one.")] = None,
    tenants: Annotated[
        Path | None, typer.Option(help="File that declares who may call and use what; read again when it changes.")
    ] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Let anyone who reaches the port do everything.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file with the server's certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file; callers then need a certificate that it has signed.")
    ] = None,
    frontends: Annotated[
        int | None, typer.Option(help="gRPC processes on the port; 0 answers calls in the engine's own.")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other knob: --set cache.device_bytes=67108864", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Serve adapters of one base over gRPC until SIGTERM or Ctrl-C; then answer what was accepted and exit 0."""
    overrides = {
        "model.base": base,
        "model.device": device,
        "model.dtype": dtype,
        "scheduler.max_batch_tokens": batch_tokens,
        "cache.adapters": adapters or None,
        "cache.registries": registry or None,
        "cache.disk_path": _text(disk),
        "cache.compositions": composition or None,
        "api.host": host,
        "api.port": port,
        "api.http_host": http_host,
        "api.http_port": http_port,
        "api.tenants": _text(tenants),
        "api.allow_anonymous": allow_anonymous,
        "api.tls_certificate": _text(tls_certificate),
        "api.tls_key": _text(tls_key),
        "api.tls_client_ca": _text(tls_client_ca),
        "api.frontends": frontends,
    }
    set_up_logging()
    try:
        run_until_signal(load_config(config, overrides, assign or ()))
    except AdapterdError as error:
        typer.echo(f"adapterd: {error.message}", err=True)
        raise typer.Exit(1) from error


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None


def set_up_logging(level: int = logging.INFO) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def run_until_signal(config: ServerConfig) -> None:
    import uvloop

    uvloop.run(_serve(config))


async def _serve(config: ServerConfig) -> None:
    from server.app import App
    from server.memory import settled
    from server.restart import bury_children, start_again, wait_s
    from training.service import services

    bury_children()
    stop = stop_signal()
    app = App(config, services)
    await app.start()
    with settled():
        await _first(stop.wait(), app.failed.wait())
    if not app.failed.is_set():
        stopping = asyncio.create_task(app.stop())
        await _first(asyncio.shield(stopping), app.failed.wait())
        if stopping.done():
            return await stopping
    # Only a new process gets the device again, and nothing here would end by itself.
    with suppress(TimeoutError):
        async with asyncio.timeout(FAULT_LINGER_S + (0.0 if stop.is_set() else wait_s())):
            await stop.wait()
    if stop.is_set():
        os._exit(1)
    start_again()


async def _first(*waits: Awaitable[object]) -> None:
    """Until one of them is over; the others are not waited for any more."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process at once."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop
