"""What the engine process answers to its fronts."""

from __future__ import annotations

from collections.abc import Mapping

from server.core import Wanted
from server.engine import Engine, Page
from server.fronts.codec import Wire, decode_work, encode_answerer, encode_computed
from server.fronts.peer import Handler


def handlers_of(engine: Engine) -> Mapping[str, Handler]:
    """The methods of `engine`, by name, with arguments and results as they cross the border."""

    async def compute(*work: object) -> Wire:
        return encode_computed(await engine.compute(decode_work(*work)))  # type: ignore[arg-type]

    async def list_page(wanted: Wanted, after: str, limit: int) -> Page:
        return await engine.list(wanted, after=after, limit=limit)

    async def describe(expression: str, tenant: str, version: str) -> bytes:
        return encode_answerer(await engine.describe(expression, tenant, version))

    return {
        "compute": compute,
        "describe": describe,
        "usage": engine.usage,
        "check": engine.check,
        "list": list_page,
        "get": engine.get,
        "card": engine.card,
        "load": engine.load,
        "unload": engine.unload,
        "pin": engine.pin,
        "prefetch": engine.prefetch,
        "set_traffic": engine.set_traffic,
    }
