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

from server.api.certificates import check_certificates
from server.config import ApiConfig
from server.errors import InvalidInput
from server.watched import Watched

START_S = 10.0
STOP_S = 2  # for connections that are open when the server ends; accepted requests were answered before
POLL_S = 0.01

log = logging.getLogger("adapterd")
logging.getLogger("uvicorn").setLevel(logging.WARNING)  # that it has started, the server says itself


class HttpServer:
    """Takes its certificates from the same files as the gRPC port, and reads them again when they change."""

    def __init__(self, app: FastAPI, config: ApiConfig) -> None:
        self._config = config
        self._paths = [Path(path) for path in (config.tls_certificate, config.tls_key, config.tls_client_ca) if path]
        self._watched = Watched(self._paths, config.reload_s, self._reload)
        self._uvicorn = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
            ssl_certfile=config.tls_certificate or None,
            ssl_keyfile=config.tls_key or None,
            ssl_ca_certs=config.tls_client_ca or None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if config.tls_client_ca else ssl.CERT_NONE,
        )
        self._server = uvicorn.Server(self._uvicorn)
        self._thread: threading.Thread | None = None

    async def start(self) -> int:
        """The port. Raises InvalidInput if it cannot be had, or for files that are no certificate and its key."""
        host, port = self._config.http_host, self._config.http_port
        if self._paths:
            await asyncio.to_thread(check_certificates, self._paths)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            raise InvalidInput(
                f"{host}:{port} cannot be bound ({error.strerror or error}); choose another http_port, or see with"
                " adapterd doctor who has it"
            ) from error
        bound: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(listener,), name="http", daemon=True)
        self._thread.start()
        async with asyncio.timeout(START_S):
            while not self._server.started:
                await asyncio.sleep(POLL_S)
        if self._paths:
            self._watched.start()
        return bound

    async def stop(self) -> None:
        await self._watched.stop()
        self._server.should_exit = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2 * STOP_S)

    def _run(self, listener: socket.socket) -> None:
        asyncio.run(self._server.serve(sockets=[listener]))

    async def _reload(self) -> None:
        """Files that do not fit leave those before; the gRPC port says so."""
        try:
            await asyncio.to_thread(check_certificates, self._paths)
            if self._uvicorn.ssl is not None:
                await asyncio.to_thread(self._uvicorn.ssl.load_cert_chain, self._paths[0], self._paths[1])
        except (InvalidInput, OSError) as error:
            log.error("HTTP: the certificate before stays: %s", error)
