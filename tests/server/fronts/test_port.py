from __future__ import annotations

import socket

import pytest

from server.errors import InvalidInput
from server.fronts.port import reserve

HOST = "127.0.0.1"


def listening(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    sock.listen()
    return sock


def test_a_reserved_port_is_shared_by_listeners_and_not_reserved_twice() -> None:
    with reserve(HOST, 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(InvalidInput, match=str(port)):
            reserve(HOST, port)
        with listening(port), listening(port):
            with pytest.raises(InvalidInput, match=str(port)):
                reserve(HOST, port)
            with socket.create_connection((HOST, port), timeout=5):
                pass
    with reserve(HOST, port):  # though the connection above is not forgotten yet
        pass


def test_a_port_that_others_listen_on_is_not_reserved() -> None:
    with listening(0) as other, pytest.raises(InvalidInput, match="cannot be bound"):
        reserve(HOST, other.getsockname()[1])


def test_a_host_that_does_not_exist_is_an_error_that_names_it() -> None:
    with pytest.raises(InvalidInput, match=r"192\.0\.2\.1"):
        reserve("192.0.2.1", 0)
