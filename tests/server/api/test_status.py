"""Errors as gRPC codes."""

from __future__ import annotations

import grpc
import pytest

from server import errors
from server.api.status import MAX_MESSAGE_CHARS, as_adapterd_error, code_of, to_status


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.AdapterNotFound("x"), grpc.StatusCode.NOT_FOUND),
        (errors.WrongBase("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.MalformedCheckpoint("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.UnsupportedConfig("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.Overloaded("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.DeadlineExceeded("x"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.Unavailable("x"), grpc.StatusCode.UNAVAILABLE),
        (errors.Internal("x"), grpc.StatusCode.INTERNAL),
    ],
)
def test_every_error_has_its_code_and_reason(error: errors.AdapterdError, code: grpc.StatusCode) -> None:
    assert code_of(error) is code
    status = to_status(error)
    assert (status.code, status.message, status.reason) == (code.value[0], "x", error.reason)
    assert status.HasField("retry_delay") == isinstance(error, errors.Overloaded)


def test_a_long_message_is_cut_to_what_trailers_hold() -> None:
    assert len(to_status(errors.InvalidInput("x" * 100_000)).message) == MAX_MESSAGE_CHARS


def test_unexpected_errors_do_not_reach_the_caller() -> None:
    known = as_adapterd_error(KeyError("secret"))
    assert isinstance(known, errors.Internal)
    assert "secret" not in known.message and known.metadata["error_id"] in known.message
