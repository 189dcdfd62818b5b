"""adapterd serve: run the server until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from server.cli import options
from server.cli.output import reported

if TYPE_CHECKING:
    from server.config import ServerConfig

NAME = "serve"
FAULT_LINGER_S = 0.5  # until callers whose requests were in the air have heard of it
EXAMPLE = "adapterd serve --base minilm --adapters examples/adapters --port 50051"


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
) -> None:
    """Serve adapters of one base over gRPC until SIGTERM or Ctrl-C; then answer what was accepted and exit 0."""
    set_up_logging()
    with reported():  # the context has all options by name: doctor, which has the same, reads them so too
        run_until_signal(options.server_config(context))


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
