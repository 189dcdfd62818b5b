"""Stage 0, TLS: the server's certificate, read again when it changes. A broken one leaves the one before."""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from pathlib import Path

import grpc

from server.config import ApiConfig
from server.errors import InvalidInput
from server.metrics import Metrics
from server.watched import Watched

log = logging.getLogger("adapterd")


class Certificates:
    """`credentials` serve what was read last; connections that are open keep what they began with."""

    def __init__(self, config: ApiConfig, metrics: Metrics) -> None:
        self._paths = [Path(config.tls_certificate), Path(config.tls_key)]
        if config.tls_client_ca:
            self._paths.append(Path(config.tls_client_ca))
        self._metrics = metrics
        self._watched = Watched(self._paths, config.reload_s, self._reload)

    async def start(self) -> None:
        """Raises InvalidInput for files that are no certificate and its key."""
        self._configuration = await asyncio.to_thread(_read, self._paths)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration,
            lambda: self._configuration,  # asked at every handshake, from a thread of gRPC
            require_client_authentication=len(self._paths) > 2,
        )
        self._watched.start()

    async def stop(self) -> None:
        await self._watched.stop()

    async def _reload(self) -> None:
        try:
            self._configuration = await asyncio.to_thread(_read, self._paths)
        except InvalidInput as error:
            log.error("the certificate before stays: %s", error.message)
            self._metrics.reloaded("certificates", has_failed=True)
            return
        log.info("certificates were read again")
        self._metrics.reloaded("certificates", has_failed=False)


def _read(paths: list[Path]) -> grpc.ServerCertificateConfiguration:
    """Raises InvalidInput unless a handshake can be made with them: gRPC would say so to callers only."""
    (chain, key, *roots), _ = _checked(paths)
    return grpc.ssl_server_certificate_configuration([(key, chain)], roots[0] if roots else None)


def context_of(paths: list[Path]) -> ssl.SSLContext:
    """Of a certificate chain, its key and, if there is a third file, the CA of callers. Raises InvalidInput."""
    return _checked(paths)[1]


def _checked(paths: list[Path]) -> tuple[list[bytes], ssl.SSLContext]:
    try:
        contents = [path.read_bytes() for path in paths]
        with tempfile.TemporaryDirectory(prefix="adapterd-") as name:
            # checked as they were read: the files may change under us
            copies = [Path(name, str(number)) for number in range(len(paths))]
            for copy, data in zip(copies, contents, strict=True):
                copy.touch(mode=0o600)
                copy.write_bytes(data)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(copies[0], copies[1], password=_no_password)
            for copy in copies[2:]:
                context.load_verify_locations(copy)
                context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        names = ", ".join(path.name for path in paths)
        raise InvalidInput(f"{names}: {error.strerror if isinstance(error, OSError) else error}") from error
    return contents, context


def _no_password() -> str:
    raise ValueError("the key is encrypted; it has to be readable without a password")
