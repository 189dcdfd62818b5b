"""The console: its pages, and what they ask for."""

from __future__ import annotations

import asyncio
from pathlib import Path as File
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from adapterd.v1 import adapters_pb2
from adapterd.v1 import inference_pb2 as v1
from server.api.admin import to_adapter, to_task, to_tier
from server.api.answering import Answering
from server.api.convert import MAX_CHOICES
from server.core import Tenant, Wanted
from server.engine import Engine
from server.errors import InvalidInput
from server.http.bridge import Bridge, require_observer, tenant_of
from server.http.state import State, merged

FILES = File(__file__).parent / "console"
KNOWN = {path.name: path for path in FILES.iterdir()}
MAX_PAGE = 500
MAX_CONTAINS_CHARS = 128
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Trial(BaseModel):
    """A text for the playground to run."""

    adapter: str
    text: str
    text_pair: str | None = None
    choices: list[str] = Field(default_factory=list, max_length=MAX_CHOICES)
    top_k: int | None = Field(None, ge=-(1 << 31), lt=1 << 31)
    return_tokens: bool = False


def router(
    engine: Engine, answering: Answering, bridge: Bridge, state: State, base: adapters_pb2.Base, version: str
) -> APIRouter:
    api = APIRouter(include_in_schema=False)

    @api.get("/")
    async def page() -> Response:
        return _file("index.html")

    @api.get("/console/session")
    async def session(request: Request) -> JSONResponse:
        tenant = tenant_of(request)
        return JSONResponse(
            {
                "tenant": tenant.name,
                "can_observe": tenant.can_observe,
                "needs_token": not state.tenants.are_open,
                "version": version,
                "base": _dict(base),
            }
        )

    @api.get("/console/state")
    async def now(request: Request) -> JSONResponse:
        async def work(tenant: Tenant) -> dict[str, Any]:
            return state.now()

        require_observer(request)
        live = await bridge.call(request, work)
        return JSONResponse(merged(await asyncio.to_thread(state.counted), live))

    @api.get("/console/adapters")
    async def adapters(
        request: Request, contains: str = "", task: str = "", tier: str = "", after: str = "", limit: int = 100
    ) -> JSONResponse:
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInput(f"limit {limit} is not between 1 and {MAX_PAGE}")
        if len(contains) > MAX_CONTAINS_CHARS:
            raise InvalidInput(f"contains has {len(contains)} characters, the limit is {MAX_CONTAINS_CHARS}")

        async def work(tenant: Tenant) -> dict[str, Any]:
            wanted = Wanted(task=to_task(task), tier=to_tier(tier), tenant=tenant, contains=contains)
            page, total = await engine.list(wanted, after=after, limit=limit + 1)
            more = page[limit - 1].name if len(page) > limit else ""
            return {"adapters": [_dict(to_adapter(status)) for status in page[:limit]], "next": more, "total": total}

        return JSONResponse(await bridge.call(request, work))

    @api.get("/console/adapters/{name:path}/card")
    async def card(request: Request, name: Annotated[str, Path()]) -> JSONResponse:
        async def work(tenant: Tenant) -> str:
            return await engine.card(name, tenant.name)

        return JSONResponse({"name": name, "markdown": await bridge.call(request, work)})

    @api.post("/console/predict")
    async def predict(trial: Trial, request: Request) -> JSONResponse:
        try:
            text = v1.Text(text=trial.text, text_pair=trial.text_pair, choices=trial.choices)
            parameters = v1.Parameters(top_k=trial.top_k, return_tokens=trial.return_tokens)
            message = v1.PredictRequest(adapter=trial.adapter, inputs=[v1.Input(text=text)], parameters=parameters)
        except ValueError as error:
            raise InvalidInput("a text holds half a character") from error

        async def work(tenant: Tenant) -> v1.PredictResponse:
            return await answering.predict("console", message, None, tenant)

        return JSONResponse(_dict(await bridge.call(request, work)))

    @api.get("/console/{name}")
    async def file(name: str) -> Response:
        return _file(name)

    return api


def _file(name: str) -> Response:
    if name not in KNOWN:
        raise HTTPException(404, f"the console has no file {name[:64]!r}")
    return FileResponse(KNOWN[name], headers=HEADERS)


def _dict(message: adapters_pb2.Base | adapters_pb2.Adapter | v1.PredictResponse) -> dict[str, Any]:
    body: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return body
