"""What a failed call or a failed item of a batch or stream is raised or returned as."""

from __future__ import annotations

import grpc

from adapterd.v1 import inference_pb2 as v1

CODES: dict[int, grpc.StatusCode] = {int(code.value[0]): code for code in grpc.StatusCode}


class Error(Exception):
    """An error the server answered with, or the channel met.

    code           the gRPC status code
    reason         stable cause in UPPER_SNAKE_CASE (`ADAPTER_NOT_FOUND`); empty if not from adapterd
    retry_after_s  when to try again; None where that makes no sense
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s


def from_rpc_error(error: grpc.RpcError) -> Error:
    """Of a failed call; both the sync and the async error of grpc carry the same four facts."""
    call: grpc.Call = error  # type: ignore[assignment]
    trailers = dict(call.trailing_metadata() or ())
    pushback = trailers.get("grpc-retry-pushback-ms")
    return Error(
        code=call.code(),
        message=call.details() or "",
        reason=str(trailers.get("adapterd-reason", "")),
        retry_after_s=int(pushback) / 1000 if pushback else None,
    )


def from_status(status: v1.Status) -> Error:
    """Of a failed item."""
    delay = status.retry_delay
    return Error(
        code=CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        message=status.message,
        reason=status.reason,
        retry_after_s=delay.seconds + delay.nanos / 1e9 if status.HasField("retry_delay") else None,
    )
