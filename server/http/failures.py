"""Errors as HTTP has them: a status, and JSON that says why."""

from __future__ import annotations

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from server.api.status import as_adapterd_error, code_of
from server.errors import AdapterdError, InvalidInput

STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
CLIENT_CLOSED = 499  # nobody reads it


def answer_failures(app: FastAPI, left: type[Exception]) -> None:
    """Have every error of `app` answered. `left` is that of a caller who has gone."""

    async def on_left(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    app.add_exception_handler(left, on_left)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    for kind in (HTTPException, AdapterdError, Exception):
        app.add_exception_handler(kind, _on_failure)


def failure(path: str, error: Exception) -> JSONResponse:
    """What a call to `path` is answered with, in OpenAI's shape under /v1."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        status, message, reason = error.status_code, str(error.detail), "REFUSED"
        headers |= error.headers or {}
    else:
        known = as_adapterd_error(error)
        status, message, reason = STATUSES.get(code_of(known).name, 500), known.message, known.reason
        if known.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(known.retry_after_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if path.startswith("/v1/"):
        return JSONResponse({"error": {"message": message, "type": reason, "code": status}}, status, headers)
    return JSONResponse({"error": message, "reason": reason}, status, headers)


async def _on_failure(request: Request, error: Exception) -> Response:
    return failure(request.scope["path"], error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = (
        f"{place[:128]}: {first['msg']}" if place else "the body is no JSON object of Content-Type application/json"
    )
    return failure(request.scope["path"], InvalidInput(message))
