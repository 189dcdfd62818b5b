"""From the thread of the HTTP port to the server's event loop and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from server.core import Tenant
from server.errors import Forbidden
from server.http.guard import TENANT

T = TypeVar("T")
Work = Callable[[Tenant], Awaitable[T]]


class Left(Exception):
    """The caller did not wait for the answer."""


class Bridge:
    """loop   of the server; everything that is handed over runs there"""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def call(self, request: Request, work: Work[T]) -> T:
        """`work`, for the tenant who calls. It is cancelled if the caller leaves before it is done.

        The body has to be read before. Raises what `work` raises, and Left.
        """

        async def run() -> T:
            return await work(tenant_of(request))

        answer = asyncio.ensure_future(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), self._loop)))
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Left
            return answer.result()
        finally:
            answer.cancel()
            leaving.cancel()


def tenant_of(request: Request) -> Tenant:
    """As `Guard` has found out."""
    tenant: Tenant = request.scope[TENANT]
    return tenant


def require_observer(request: Request) -> None:
    """Raises Forbidden unless the caller may see what concerns all tenants."""
    tenant = tenant_of(request)
    if not tenant.can_observe:
        raise Forbidden(f"tenant {tenant.name!r} may not see what concerns all tenants; its operator sets can_observe")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
