"""Every error a caller can meet.

AdapterdError
├── InvalidInput          the request itself is wrong: empty text, too many tokens, bad parameter
├── Unauthenticated       no credentials, or none that this server knows
├── Forbidden             known, and not allowed to do this
├── AdapterNotFound       no adapter is registered under this name, or none that this caller may know of
├── AdapterRefused        the adapter exists and cannot be served as it is
│   ├── WrongBase         made for another base model
│   ├── MalformedCheckpoint  files missing, truncated, or not what their configuration says
│   ├── UnsupportedConfig    a configuration that cannot be lowered exactly
│   ├── TooLarge          larger than a tier's whole budget; no waiting makes room
│   ├── AdapterChanged    the origin holds something else than what the name was loaded as
│   └── NonFinite         it gives NaN or Inf where there should be an answer
├── Overloaded            no room now; `retry_after_s` says when to come back
│   └── OutOfDeviceMemory the batch does not fit beside what the device holds; a smaller one may
├── DeadlineExceeded      out of time before compute
├── Unavailable           starting, draining, or the device is gone
│   ├── Quarantined       this adapter failed a moment ago; it is tried again in a while
│   └── DeviceFault       the device answers nothing any more; the server starts again
└── Internal              our own fault

`api/status.py` is the only place that knows which gRPC status each one becomes.
"""

from __future__ import annotations


class AdapterdError(Exception):
    """Base of all errors that are meant for a caller.

    `message` says the value, the limit and the remedy, and never a path, a stack or another tenant's name.
    `metadata` carries the same facts for programs, as short strings. `retry_after_s` says when to come back, if known.
    """

    reason = "INTERNAL"
    retry_after_s: float | None = None

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidInput(AdapterdError):
    reason = "INVALID_INPUT"


class Unauthenticated(AdapterdError):
    reason = "UNAUTHENTICATED"


class Forbidden(AdapterdError):
    reason = "FORBIDDEN"


class AdapterNotFound(AdapterdError):
    reason = "ADAPTER_NOT_FOUND"


class AdapterRefused(AdapterdError):
    reason = "ADAPTER_REFUSED"


class WrongBase(AdapterRefused):
    reason = "WRONG_BASE"


class MalformedCheckpoint(AdapterRefused):
    reason = "MALFORMED_CHECKPOINT"


class UnsupportedConfig(AdapterRefused):
    reason = "UNSUPPORTED_CONFIG"


class TooLarge(AdapterRefused):
    reason = "ADAPTER_TOO_LARGE"


class AdapterChanged(AdapterRefused):
    reason = "ADAPTER_CHANGED"


class NonFinite(AdapterRefused):
    reason = "NON_FINITE"


class Overloaded(AdapterdError):
    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after_s: float = 0.1, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class OutOfDeviceMemory(Overloaded):
    reason = "OUT_OF_DEVICE_MEMORY"


class DeadlineExceeded(AdapterdError):
    reason = "DEADLINE_EXCEEDED"


class Unavailable(AdapterdError):
    reason = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: float | None = None, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class Quarantined(Unavailable):
    reason = "QUARANTINED"


class DeviceFault(Unavailable):
    reason = "DEVICE_FAULT"


class Unimplemented(AdapterdError):
    reason = "UNIMPLEMENTED"


class Internal(AdapterdError):
    reason = "INTERNAL"
