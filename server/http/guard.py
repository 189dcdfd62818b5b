"""What every HTTP request passes before its body is read: who calls, from which page, and how much it may send."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.gate import Gate, bearer
from server.errors import AdapterdError
from server.http.failures import failure
from server.http.protocol import SUBJECTS

BODY_S = 30.0  # for a body to arrive
OPEN = frozenset({"/", "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/openapi.json"})
OPEN_BELOW = ("/docs", "/console/")  # but for what the console asks for
CLOSED_BELOW = "/console/adapters"
CLOSED = frozenset({CLOSED_BELOW, "/console/session", "/console/state", "/console/predict"})
TENANT = "tenant"  # in a scope: who calls


class Guard:
    """Refuses callers without credentials, pages that are not this server's own, and bodies that are too large.

    Where anyone may call from this machine, so could any page that is open in its browser: by a form, a script or a
    picture, or by a name of its own that resolves to this address.

    max_held_bytes   of bodies of all requests together
    is_local         the port is open to this machine only: it is called by an address or as localhost
    """

    def __init__(self, app: ASGIApp, gate: Gate, max_body_bytes: int, max_held_bytes: int, *, is_local: bool) -> None:
        self._app, self._gate, self._is_local = app, gate, is_local
        self._max_body_bytes, self._max_held_bytes = max_body_bytes, max_held_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except (HTTPException, AdapterdError) as error:
            return await failure(scope["path"], error)(scope, receive, send)
        body = _Body(receive, self._max_body_bytes, self)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._held_bytes -= body.num_bytes

    def hold(self, num_bytes: int) -> None:
        """Raises HTTPException where all bodies together are too much."""
        self._held_bytes += num_bytes
        if self._held_bytes > self._max_held_bytes:
            raise HTTPException(503, "the bodies of requests that are inside are too large together; try again")

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises HTTPException and Unauthenticated."""
        host, origin, path = headers.get("host", ""), headers.get("origin"), scope["path"]
        if self._is_local and not _is_address(host):
            raise HTTPException(421, f"host {host[:128]!r} is no name of this server; use 127.0.0.1 or localhost")
        is_foreign = origin is not None and _place(origin) != host
        if is_foreign or (headers.get("sec-fetch-site") == "cross-site" and path != "/"):
            raise HTTPException(403, f"a page of {(origin or 'another site')[:128]!r} may not call this server")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or int(length[:20]) > self._max_body_bytes:
            raise HTTPException(413, too_large(self._max_body_bytes))
        if not _is_open(path):
            peer = scope["client"][0] if scope.get("client") else ""
            token = bearer(headers.get("authorization"))
            scope[TENANT] = self._gate.tenant_of(token, scope.get(SUBJECTS, ()), peer)


class _Body:
    """Counts what arrives of one body."""

    def __init__(self, receive: Receive, max_bytes: int, guard: Guard) -> None:
        self._receive, self._max_bytes, self._guard = receive, max_bytes, guard
        self._is_whole = False
        self._until = asyncio.get_running_loop().time() + BODY_S
        self.num_bytes = 0

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_S:g} s") from None
        size = len(message.get("body", b""))
        self.num_bytes += size
        self._guard.hold(size)
        if self.num_bytes > self._max_bytes:
            raise HTTPException(413, too_large(self._max_bytes))
        self._is_whole = not message.get("more_body", False)
        return message


def too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes, the limit (max_message_bytes)"


def _is_open(path: str) -> bool:
    """What anyone may read: it is the same on every server."""
    is_asked_for = path in CLOSED or path.startswith(f"{CLOSED_BELOW}/")
    return path in OPEN or path.startswith(OPEN_BELOW) and not is_asked_for


def _is_address(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost":
            return True
        ip_address(name)
    except ValueError:
        return False
    return True


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
