"""Everything behind the HTTP port, put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from adapterd.v1 import adapters_pb2
from server.api.answering import Answering
from server.api.gate import Gate
from server.api.oip import OipServicer
from server.config import ApiConfig, is_loopback
from server.engine import Engine
from server.http import console, oip, openai
from server.http.bridge import Bridge, Left, require_observer
from server.http.failures import answer_failures
from server.http.guard import Guard
from server.http.state import State
from server.oip.tensors import Limits

ABOUT = """Many adapters of one encoder: every request names its own.

Where tenants are declared, send `Authorization: Bearer TOKEN`. gRPC on the other port has more and is faster."""

# Of every path. Without it FastAPI declares a 422 of its own, which is never answered.
FAILED: dict[int | str, dict[str, Any]] = {"default": {"description": "Refused or failed: `error` says why"}}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with."""

    engine: Engine
    answering: Answering
    protocol: OipServicer
    bridge: Bridge
    gate: Gate
    limits: Limits
    state: State
    registry: CollectorRegistry
    base: adapters_pb2.Base
    version: str


def make_app(parts: Parts, config: ApiConfig) -> FastAPI:
    app = FastAPI(
        title="adapterd", version=parts.version, description=ABOUT, responses=FAILED, docs_url=None, redoc_url=None
    )
    answer_failures(app, Left)
    app.add_middleware(
        Guard,
        gate=parts.gate,
        max_body_bytes=config.max_message_bytes,
        max_held_bytes=config.max_in_flight_bytes,
        is_local=is_loopback(config.http_host),
    )
    app.include_router(oip.router(parts.protocol, parts.answering, parts.bridge, parts.version))
    app.include_router(openai.router(parts.engine, parts.answering, parts.bridge, parts.limits))

    @app.get("/metrics", summary="For Prometheus", tags=["Operation"])
    async def metrics(request: Request) -> Response:
        require_observer(request)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(await run_in_threadpool(encode, parts.registry), headers={"content-type": content_type})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="adapterd",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon-32x32.png",
        )

    app.mount("/docs", StaticFiles(directory=swagger_ui_path))
    app.include_router(
        console.router(parts.engine, parts.answering, parts.bridge, parts.state, parts.base, parts.version)
    )
    return app
