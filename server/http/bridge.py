"""From the thread of the HTTP port to the server's event loop and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from server.api.gate import Gate, bearer
from server.core import Tenant
from server.errors import Forbidden

T = TypeVar("T")
Work = Callable[[Tenant], Awaitable[T]]


class Left(Exception):
    """The caller did not wait for the answer."""


class Bridge:
    """loop   of the server; everything that is handed over runs there"""

    def __init__(self, loop: asyncio.AbstractEventLoop, gate: Gate) -> None:
        self._loop = loop
        self._gate = gate

    async def call(self, request: Request, work: Work[T]) -> T:
        """`work`, for the tenant who calls. It is cancelled if the caller leaves before it is done.

        The body has to be read before. Raises Unauthenticated, what `work` raises, and Left.
        """
        token = bearer(request.headers.get("authorization"))
        peer = request.client.host if request.client else ""

        async def run() -> T:
            return await work(self._gate.tenant_of(token, (), peer))

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

    async def observe(self, request: Request, work: Work[T]) -> T:
        """As `call`, for those who may see what concerns all tenants. Raises Forbidden for others."""

        async def run(tenant: Tenant) -> T:
            if not tenant.can_observe:
                raise Forbidden(
                    f"tenant {tenant.name!r} may not see what concerns all tenants; its operator sets can_observe"
                )
            return await work(tenant)

        return await self.call(request, run)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
