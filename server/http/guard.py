"""What every HTTP request passes first: its size, and whether a page of somebody else's is behind it."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Guard:
    """Refuses bodies that are too large, and what a browser sends for pages that are not this server's own.

    Where anyone may call from this machine, so could any page that is open in its browser: by a form or a script, or by
    a name of its own that resolves to this address.

    is_local   the port is open to this machine only: it is called by an address or as localhost
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, *, is_local: bool) -> None:
        self._app, self._max_body_bytes, self._is_local = app, max_body_bytes, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if (refusal := self._refusal(headers)) is not None:
            return await refusal(scope, receive, send)
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        await self._app(scope, counted, send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if self._is_local and not _is_address(host):
            return _refused(421, f"host {host[:128]!r} is no name of this server; use 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refused(403, f"a page of {origin[:128]!r} may not call this server")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body_bytes:
            return _refused(413, self._too_large())
        return None

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body_bytes} bytes, the limit (max_message_bytes)"


def _is_address(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def _refused(code: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message, "reason": "REFUSED"}, code)
