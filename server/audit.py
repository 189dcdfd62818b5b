"""Who changed what, and who was turned away: one line of JSON each, for a person who asks later."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from server.core import Tenant
from server.errors import AdapterdError, InvalidInput

MAX_CHARS = 256  # of what a caller wrote
MAX_DENIED_PER_S = 20  # lines: more are counted and not written


class Audit:
    """Lines of a file, which may be rotated under it, or of the log where there is none.

    path   "" for the log. Raises InvalidInput if it cannot be written
    """

    def __init__(self, path: str = "") -> None:
        self._log = logging.getLogger("adapterd.audit")
        self._handler: WatchedFileHandler | None = None
        self._second, self._num_denied = 0, 0
        if path:
            try:
                self._handler = WatchedFileHandler(Path(path), encoding="utf-8")
            except OSError as error:
                raise InvalidInput(f"audit_log {Path(path).name}: {error.strerror}") from error
            self._handler.setFormatter(logging.Formatter("%(message)s"))

    @contextmanager
    def action(self, tenant: Tenant, what: str, adapter: str, **more: Any) -> Iterator[None]:
        """What the body does, written with its outcome."""
        outcome = "CANCELLED"
        try:
            yield
            outcome = "OK"
        except AdapterdError as error:
            outcome = error.reason
            raise
        except Exception:
            outcome = "INTERNAL"
            raise
        finally:
            self._write(tenant=tenant.name, action=what, adapter=adapter[:MAX_CHARS], outcome=outcome, **more)

    def denied(self, peer: str, reason: str) -> None:
        """A call without credentials that are known."""
        second = int(time.monotonic())
        if second != self._second:
            if self._num_denied > MAX_DENIED_PER_S:
                self._write(action="call", outcome="UNAUTHENTICATED", more=self._num_denied - MAX_DENIED_PER_S)
            self._second, self._num_denied = second, 0
        self._num_denied += 1
        if self._num_denied <= MAX_DENIED_PER_S:
            self._write(peer=peer[:MAX_CHARS], action="call", outcome="UNAUTHENTICATED", why=reason)

    def reloaded(self, what: str, outcome: str) -> None:
        self._write(action=f"reload {what}", outcome=outcome[:MAX_CHARS])

    def close(self) -> None:
        if self._handler is not None:
            self._handler.close()

    def _write(self, **facts: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"at": at, **facts}, ensure_ascii=True)
        if self._handler is None:
            self._log.info("%s", line)
        else:
            self._handler.emit(logging.makeLogRecord({"msg": line, "name": self._log.name}))
