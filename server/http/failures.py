"""Errors as HTTP has them: a status, and JSON that says why."""

from __future__ import annotations

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from server.api.status import as_adapterd_error, code_of
from server.errors import AdapterdError
from server.http.bridge import Left

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


def answer_failures(app: FastAPI) -> None:
    """Have every error of `app` answered."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Left, lambda request, error: Response(status_code=CLIENT_CLOSED))
    app.add_exception_handler(AdapterdError, lambda request, error: failure(request, error))
    app.add_exception_handler(Exception, lambda request, error: failure(request, error))


def failure(request: Request, error: Exception) -> JSONResponse:
    known = as_adapterd_error(error)
    status = STATUSES.get(code_of(known).name, 500)
    headers = {}
    if known.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(known.retry_after_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return _response(request, status, known.message, known.reason, headers)


def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _response(request, error.status_code, str(error.detail), "REFUSED", dict(error.headers or {}))


def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    return _response(request, 400, f"{place}: {first['msg']}", "INVALID_INPUT", {})


def _response(request: Request, status: int, message: str, reason: str, headers: dict[str, str]) -> JSONResponse:
    """In OpenAI's shape under /v1."""
    if request.url.path.startswith("/v1/"):
        return JSONResponse({"error": {"message": message, "type": reason, "code": status}}, status, headers)
    return JSONResponse({"error": message, "reason": reason}, status, headers)
