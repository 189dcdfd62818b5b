"""Stage 0, errors: the one table from our errors to gRPC status codes and details."""

from __future__ import annotations

import logging
import math
import secrets
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from adapterd.v1 import inference_pb2 as v1
from server import errors
from server.errors import AdapterdError

CODES: dict[type[AdapterdError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.AdapterNotFound: grpc.StatusCode.NOT_FOUND,
    errors.AdapterRefused: grpc.StatusCode.FAILED_PRECONDITION,  # and its kinds
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
}
DOMAIN = "adapterd"
# Trailers share 8 KiB by default on the caller's side, and the message travels in two of them.
MAX_MESSAGE_CHARS = 1024
MAX_METADATA_CHARS = 256

log = logging.getLogger("adapterd.api")


def code_of(error: AdapterdError) -> grpc.StatusCode:
    """The code of the nearest class that the table knows; INTERNAL where it knows none."""
    known = (CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return next(known, grpc.StatusCode.INTERNAL)


def as_adapterd_error(error: Exception) -> AdapterdError:
    """`error` itself if it is meant for a caller; else logs it and gives one that tells its log id only."""
    if isinstance(error, AdapterdError):
        return error
    error_id = secrets.token_hex(6)
    log.error("error_id=%s unexpected error", error_id, exc_info=error)
    return errors.Internal(f"internal error {error_id}; the server's log has it under this id", error_id=error_id)


def to_status(error: AdapterdError) -> v1.Status:
    """What a failed item of a batch or stream is answered with."""
    status = v1.Status(code=_number(code_of(error)), message=_cut(error.message), reason=error.reason)
    if error.retry_after_s is not None:
        status.retry_delay.FromMilliseconds(_milliseconds(error.retry_after_s))
    return status


async def abort(context: grpc.aio.ServicerContext[object, object], error: AdapterdError) -> NoReturn:
    """End the call with code, google.rpc details, and trailers for callers that lack those protos."""
    trailers: list[tuple[str, str | bytes]] = list(_rich_trailers(error))
    trailers.append(("adapterd-reason", error.reason))
    if error.retry_after_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(_milliseconds(error.retry_after_s))))
    await context.abort(code_of(error), _cut(error.message), tuple(trailers))


def _rich_trailers(error: AdapterdError) -> list[tuple[str, str | bytes]]:
    metadata = {key: value[:MAX_METADATA_CHARS] for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    rich = status_pb2.Status(code=_number(code_of(error)), message=_cut(error.message), details=[_packed(info)])
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_after_s))
        rich.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return list(rpc_status.to_status(rich).trailing_metadata or ())


def _packed(detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
