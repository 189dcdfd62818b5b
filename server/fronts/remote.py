"""The engine of another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.core import AdapterStatus, BaseInfo, Wanted
from server.engine import Answerer, Computed, Page, Work
from server.fronts.codec import decode_answerer, decode_computed, encode_work
from server.fronts.peer import Peer
from server.tenants import Tenants
from server.usage import Usage

MAX_KNOWN = 4096  # expressions that are not checked again


class RemoteEngine:
    """See `server.engine.Engine`. Every method is one call to the process that owns the device."""

    def __init__(self, peer: Peer, base: BaseInfo, tenants: Tenants) -> None:
        self._peer = peer
        self._base = base
        self._tenants = tenants
        self._known: set[tuple[int, str, str]] = set()

    async def check(self, expression: str, tenant: str) -> None:
        """Asks once per expression that can be answered: the engine looks again when it is to answer.

        So a known name costs no round trip, and an unknown one is refused before its texts are tokenized.
        """
        key = (self._tenants.generation, tenant, expression)
        if key in self._known:
            return
        await self._peer.call("check", expression, tenant)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(key)

    async def compute(self, work: Work) -> Computed:
        return decode_computed(*await self._peer.call("compute", *encode_work(work, self._base)))

    async def describe(self, expression: str, tenant: str, version: str = "") -> Answerer:
        return decode_answerer(await self._peer.call("describe", expression, tenant, version))

    async def usage(self, names: Sequence[str], tenant: str) -> Sequence[tuple[str, Usage]]:
        usages: Sequence[tuple[str, Usage]] = await self._peer.call("usage", list(names), tenant)
        return usages

    async def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> Page:
        page: Page = await self._peer.call("list", wanted, after, limit)
        return page

    async def get(self, name: str, tenant: str) -> AdapterStatus:
        status: AdapterStatus = await self._peer.call("get", name, tenant)
        return status

    async def card(self, name: str, tenant: str) -> str:
        card: str = await self._peer.call("card", name, tenant)
        return card

    async def load(self, name: str, tenant: str, percent: int = 100) -> tuple[AdapterStatus, str]:
        loaded: tuple[AdapterStatus, str] = await self._peer.call("load", name, tenant, percent)
        return loaded

    async def unload(self, name: str, tenant: str) -> tuple[int, int, int]:
        freed: tuple[int, int, int] = await self._peer.call("unload", name, tenant)
        return freed

    async def pin(self, name: str, is_pinned: bool, tenant: str) -> AdapterStatus:
        status: AdapterStatus = await self._peer.call("pin", name, is_pinned, tenant)
        return status

    async def prefetch(self, names: Sequence[str], tenant: str) -> int:
        num_begun: int = await self._peer.call("prefetch", list(names), tenant)
        return num_begun

    async def set_traffic(self, name: str, shares: Mapping[str, int], tenant: str) -> AdapterStatus:
        status: AdapterStatus = await self._peer.call("set_traffic", name, dict(shares), tenant)
        return status
