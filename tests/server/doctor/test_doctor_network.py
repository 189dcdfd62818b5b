"""Ports, who holds them, and what answers at an address."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from server.config import ApiConfig
from server.doctor.finding import State
from server.doctor.network import listening, port
from server.doctor.peer import Speaks, address_of, look_at


@contextmanager
def serving(answer: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port that answers whoever speaks with the same bytes, and hangs up."""

    def work() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connection.settimeout(5)
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                with connection:
                    connection.recv(1024)
                    connection.sendall(answer)
            except ssl.SSLError:
                continue
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize(
    ("answer", "speaks"),
    [
        (SETTINGS_FRAME, Speaks.CLEAR),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Speaks.HTTP),
        (b"220 mail.example ready\r\n", Speaks.UNKNOWN),
        (b"", Speaks.UNKNOWN),
    ],
)
def test_what_answers_is_told_apart(answer: bytes, speaks: Speaks) -> None:
    with serving(answer) as number:
        assert look_at("127.0.0.1", number).speaks is speaks


def test_tls_is_told_apart(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with serving(SETTINGS_FRAME, context) as number:
        assert look_at("127.0.0.1", number).speaks is Speaks.TLS


def test_nobody_is_told_with_the_reason() -> None:
    peer = look_at("127.0.0.1", 1)
    assert (peer.speaks, peer.why) == (Speaks.NOTHING, "Connection refused")


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("[::1]:50051", ("::1", 50051)),
        ("host", None),
        ("unix:/run/adapterd", None),
        ("host:port", None),
    ],
)
def test_addresses_are_read_as_far_as_they_are_host_and_port(server: str, address: tuple[str, int] | None) -> None:
    assert address_of(server) == address


def test_a_free_port_is_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    assert port(ApiConfig(port=number), "port").state is State.OK
    assert port(ApiConfig(port=0), "port").state is State.OK


@pytest.mark.parametrize("name", ["port", "http_port"])
def test_a_taken_port_is_told_with_its_holder(name: str) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as holder:
        thread = threading.Thread(target=holder.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        found = port(ApiConfig(**{name: holder.server_port}), name)  # type: ignore[arg-type]
        holder.shutdown()
        thread.join(10)
    flag = f"--{name.replace('_', '-')}"
    assert (found.name, found.state) == (name, State.PROBLEM)
    assert f"127.0.0.1:{holder.server_port} is taken by a server of plain HTTP" in found.message
    assert f"{flag} {holder.server_port + 1} (api.{name})" in found.remedy


def test_one_port_for_both_is_a_problem() -> None:
    found = port(ApiConfig(port=5000, http_port=5000), "http_port")
    assert found.state is State.PROBLEM and "--http-port 5001 (api.http_port)" in found.remedy


def test_an_address_of_another_machine_is_a_problem() -> None:
    found = port(ApiConfig(host="192.0.2.1", allow_anonymous=True), "port")
    assert found.state is State.PROBLEM and "api.host" in found.remedy


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, ""),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "TLS is off"),
        ({"host": "0.0.0.0", "allow_anonymous": True, "tls_certificate": "c", "tls_key": "k"}, "anyone who reaches"),
        ({"http_host": "0.0.0.0", "tenants": "t"}, "http_host '0.0.0.0' is not loopback and TLS is off"),
        (
            {"http_host": "0.0.0.0", "allow_anonymous": True, "tls_certificate": "c", "tls_key": "k"},
            "anyone who reaches",
        ),
    ],
)
def test_who_reaches_the_server_is_told(settings: dict[str, object], says: str) -> None:
    found = listening(ApiConfig(**settings))  # type: ignore[arg-type]
    assert (found.state is State.WARNING) == bool(says) and says in found.message
    assert not says or "(api." in found.remedy
