"""The HTTP port itself: a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from server.api.certificates import context_of
from server.config import ApiConfig
from server.errors import InvalidInput
from server.http.protocol import Protocol
from server.watched import Watched

STOP_S = 2  # for connections that are open when the server ends; accepted requests were answered before
MAX_CONNECTIONS = 2048
MAX_HEADER_BYTES = 16 << 10

log = logging.getLogger("adapterd")
logging.getLogger("uvicorn").setLevel(logging.WARNING)  # that it has started, the server says itself


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop.call_soon_threadsafe(self.listening.set)


class HttpServer:
    """Takes its certificates from the same files as the gRPC port, and reads them again when they change."""

    def __init__(self, app: FastAPI, config: ApiConfig) -> None:
        self._config = config
        self._paths = [Path(path) for path in (config.tls_certificate, config.tls_key, config.tls_client_ca) if path]
        self._watched = Watched(self._paths, config.reload_s, self._reload)
        self._uvicorn = uvicorn.Config(
            app,
            loop="asyncio",
            http=Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=STOP_S,
        )
        self._context: ssl.SSLContext | None = None  # of now
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    async def start(self) -> int:
        """The port. Raises InvalidInput if it cannot be had, or for files that are no certificate and its key."""
        host, port = self._config.http_host, self._config.http_port
        if self._paths:
            self._context = await asyncio.to_thread(context_of, self._paths)
        self._uvicorn.load()
        self._uvicorn.ssl = self._outer_context()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host.strip("[]"), port), family=family)
        except OSError as error:
            raise InvalidInput(
                f"{host}:{port} cannot be bound ({error.strerror or error}); choose another http_port, or see with"
                " adapterd doctor who has it"
            ) from error
        bound: int = listener.getsockname()[1]
        self._server = _Server(self._uvicorn)
        self._thread = threading.Thread(target=self._run, args=(self._server, listener), name="http", daemon=True)
        self._thread.start()
        await self._server.listening.wait()
        if self._paths:
            self._watched.start()
        return bound

    async def stop(self) -> None:
        await self._watched.stop()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            await asyncio.to_thread(self._thread.join, 2 * STOP_S)

    def _run(self, server: _Server, listener: socket.socket) -> None:
        asyncio.run(server.serve(sockets=[listener]))

    def _outer_context(self) -> ssl.SSLContext | None:
        """What connections begin with; each goes on with the context of now. So a new one takes the place of the old
        whole, and no handshake meets half of it."""
        if not self._paths:
            return None
        outer = context_of(self._paths)

        def go_on(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            if self._context is not None:
                connection.context = self._context

        outer.sni_callback = go_on
        return outer

    async def _reload(self) -> None:
        """Files that do not fit leave those before; the gRPC port says so."""
        try:
            self._context = await asyncio.to_thread(context_of, self._paths)
        except InvalidInput as error:
            log.error("HTTP: the certificate before stays: %s", error.message)
