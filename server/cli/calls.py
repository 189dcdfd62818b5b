"""Calls of a running server, whose errors say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from server.errors import InvalidInput

if TYPE_CHECKING:
    from adapterd import Client, Error

DEFAULT_SERVER = "127.0.0.1:50051"
SLOW = "DEADLINE_EXCEEDED"
NO_ANSWER = ("UNAVAILABLE", SLOW)


def quiet_grpc() -> None:
    """Before gRPC is imported: what its core logs of a connection that fails would stand between our own lines."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def connected(server: str, token: str | None = None, *, max_retries: int = 3) -> Client:
    """A client. Raises InvalidInput for certificates that cannot be read.

    token   None: that of ADAPTERD_TOKEN
    """
    quiet_grpc()
    from adapterd import Client
    from server.doctor.remote import unreadable

    try:
        return Client(server, token=token, max_retries=max_retries)
    except OSError as error:
        raise InvalidInput(f"{unreadable(error)}; name a PEM file that you may read, or unset it") from error


@contextmanager
def calling(server: str, token: str | None = None, *, max_retries: int = 3) -> Iterator[Client]:
    """A client whose calls raise errors that say what to do."""
    quiet_grpc()
    from adapterd import Error

    with connected(server, token, max_retries=max_retries) as client:
        try:
            yield client
        except Error as error:
            raise Error(error.code, explained(server, error), error.reason, error.retry_after_s) from error


def explained(server: str, error: Error) -> str:
    """The error's message, with what to do where it does not say so itself."""
    from server.doctor.remote import WITH_TOKEN, unreachable

    code = error.code.name
    if error.reason == "UNAUTHENTICATED":
        return f"{error.message}: {WITH_TOKEN}"
    if error.reason:
        return error.message  # the server's own, which has a remedy
    if code in NO_ANSWER and (trouble := unreachable(server)) is not None:
        return "; ".join(trouble)
    if code == SLOW:
        return f"{server} gave no answer in time; allow more with --timeout, or see what it does: adapterd top"
    if code == "UNIMPLEMENTED":
        return f"{server} does not know this call; it is another server, or another version of adapterd: --server"
    return error.message
