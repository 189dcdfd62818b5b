"""A connection of the HTTP port: who is behind its certificate, and how long it may say nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

QUIET_S = 10.0  # for the first request and between two; whoever says nothing, or half a header, holds a descriptor
SUBJECTS = "subjects"  # in a scope: names of the caller's certificate


class Protocol(H11Protocol):
    _timer: asyncio.TimerHandle | None = None
    _was_quiet = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        subjects = _subjects(transport.get_extra_info("ssl_object"))
        if subjects:
            self.app = _with_subjects(self.app, subjects)
        self._timer = self.loop.call_later(QUIET_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Close what was quiet twice in a row."""
        is_quiet = self.cycle is None or self.cycle.response_complete
        if is_quiet and self._was_quiet:
            self.transport.close()
            return
        self._was_quiet = is_quiet
        self._timer = self.loop.call_later(QUIET_S, self._look)


def _with_subjects(app: ASGIApp, subjects: tuple[str, ...]) -> ASGIApp:
    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SUBJECTS] = subjects
        await app(scope, receive, send)

    return named


def _subjects(ssl_object: Any) -> tuple[str, ...]:
    """Common and alternative names of a certificate that was verified."""
    certificate = ssl_object.getpeercert() if ssl_object is not None else None
    if not certificate:
        return ()
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return (*common, *(value for _, value in certificate.get("subjectAltName", ())))
