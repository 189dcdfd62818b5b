"""One port for several processes, and for nobody else."""

from __future__ import annotations

import socket

from server.errors import InvalidInput


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port that is free now, so that processes of this user that ask for SO_REUSEPORT can listen on it.

    port   0 takes any
    raises InvalidInput if somebody else has it
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = socket.socket(family, kind, protocol)
        try:
            _bind_alone(held, address)
        except OSError:
            held.close()
            raise
    except OSError as error:
        raise InvalidInput(
            f"{host}:{port} cannot be bound ({error.strerror}); choose another port, or see with adapterd doctor who"
            " has it"
        ) from error
    return held


def _bind_alone(held: socket.socket, address: object) -> None:
    """Bound as one who shares with nobody, which fails if another has the port; shared only from then on.

    SO_REUSEADDR lets old connections in TIME_WAIT be, and while it is set would let a second reservation succeed.
    """
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(address)  # type: ignore[arg-type]
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
