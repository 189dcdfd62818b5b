"""What answers at an address: nobody, gRPC in the clear, TLS, or plain HTTP. Asked without gRPC, which does not say."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

TIMEOUT_S = 1.0
# How a client begins HTTP/2: the preface and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS = 4  # type of a frame, its fourth byte
FRAME_BYTES = 9  # of its header


class Speaks(Enum):
    NOTHING = "nothing"  # nobody listens there
    CLEAR = "gRPC without TLS"
    TLS = "TLS"
    HTTP = "HTTP/1"
    UNKNOWN = "something else"


@dataclass(frozen=True, slots=True)
class Peer:
    """`why`: of NOTHING, the system's reason."""

    speaks: Speaks
    why: str = ""


def address_of(server: str) -> tuple[str, int] | None:
    """Host and port of "host:port" or "[::1]:port"; None for gRPC's other ways to name a server."""
    try:
        parts = urlsplit(f"//{server}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None


def look_at(host: str, port: int, timeout_s: float = TIMEOUT_S) -> Peer:
    """Connects once or twice, and takes `timeout_s` for each of its questions at most."""
    try:
        first = _answer(host, port, timeout_s)
    except OSError as error:
        return Peer(Speaks.NOTHING, error.strerror or str(error) or type(error).__name__)
    if first.startswith((b"HTTP/1", b"<")):  # or a page without the lines above it, for it takes this for HTTP/0.9
        return Peer(Speaks.HTTP)
    if len(first) >= FRAME_BYTES and first[3] == SETTINGS:
        return Peer(Speaks.CLEAR)
    return Peer(Speaks.TLS if _shakes_hands(host, port, timeout_s) else Speaks.UNKNOWN)


def _answer(host: str, port: int, timeout_s: float) -> bytes:
    """The first bytes that come back. Raises OSError where nobody can be reached."""
    with socket.create_connection((host, port), timeout_s) as connection:
        try:
            connection.sendall(PREFACE)
            return connection.recv(64)
        except OSError:  # it has heard enough, or says nothing
            return b""


def _shakes_hands(host: str, port: int, timeout_s: float) -> bool:
    """Whether TLS begins there. Nothing is sent through it, so that nobody has to be trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout_s) as connection, context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return error.reason is not None and "ALERT" in error.reason  # only TLS sends one
    except OSError:
        return False
