"""Embeddings in OpenAI's shape: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
import time
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from adapterd.v1 import inference_pb2 as v1
from server.api.answering import Answering
from server.core import BASE, Tenant, Wanted
from server.engine import Engine
from server.errors import InvalidInput
from server.http.bridge import Bridge
from server.tracing import parent_of

MAX_LISTED = 10_000


class EmbeddingsRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"model": "base", "input": ["a fine film", "a dull one"]}}
    )

    model: str = Field(description="An adapter without a head, a composition of them, or base")
    input: str | list[str] | list[int] | list[list[int]] = Field(description="Texts, or token ids")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="The model's own; there is no other")
    user: str = Field("", description="Not used")


class EmbeddingItem(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


class ModelItem(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "adapterd"


class ModelsResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelItem]


def router(engine: Engine, answering: Answering, bridge: Bridge) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["OpenAI"])
    started = int(time.time())

    @api.post("/embeddings", summary="Embeddings of texts, scaled to unit length")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        message = v1.PredictRequest(
            adapter=body.model, inputs=_inputs(body.input), parameters=v1.Parameters(normalize=True)
        )

        async def work(tenant: Tenant) -> v1.PredictResponse:
            return await answering.answer("embeddings", message, None, tenant, parent_of(request.headers.items()))

        response = await bridge.call(request, work)
        return EmbeddingsResponse(
            model=body.model,
            data=[
                EmbeddingItem(index=index, embedding=_encoded(result, body))
                for index, result in _embedded(response, body)
            ],
            usage=_usage(sum(result.num_tokens for result in response.results)),
        )

    @api.get("/models", summary="What can be named as a model")
    async def models(request: Request) -> ModelsResponse:
        async def work(tenant: Tenant) -> list[str]:
            page, _ = await engine.list(Wanted("", "", None, tenant), limit=MAX_LISTED)
            return [*([BASE] if tenant.may_use(BASE) else []), *(status.name for status in page)]

        names = await bridge.call(request, work)
        return ModelsResponse(data=[ModelItem(id=name, created=started) for name in names])

    return api


def _inputs(source: str | list[str] | list[int] | list[list[int]]) -> list[v1.Input]:
    items: list[Any] = [source] if isinstance(source, str) or source and isinstance(source[0], int) else list(source)
    try:
        return [
            v1.Input(text=v1.Text(text=item)) if isinstance(item, str) else v1.Input(tokens=v1.Tokens(input_ids=item))
            for item in items
        ]
    except ValueError as error:
        raise InvalidInput("input holds a number that is no id of a token") from error


def _embedded(response: v1.PredictResponse, body: EmbeddingsRequest) -> list[tuple[int, v1.Result]]:
    """Raises InvalidInput for answers that are no embeddings."""
    for result in response.results:
        kind = result.WhichOneof("result")
        if kind != "embedding":
            raise InvalidInput(
                f"{body.model[:128]!r} answers {kind or 'several results'}, no embedding; name {BASE!r} or an adapter"
                " without a head"
            )
        size = len(result.embedding.values)
        if body.dimensions not in (None, size):
            raise InvalidInput(f"dimensions {body.dimensions}: embeddings of {body.model[:128]!r} have {size}")
    return list(enumerate(response.results))


def _encoded(result: v1.Result, body: EmbeddingsRequest) -> list[float] | str:
    if body.encoding_format == "float":
        return list(result.embedding.values)
    return base64.b64encode(np.array(result.embedding.values, "<f4").tobytes()).decode()


def _usage(num_tokens: int) -> EmbeddingUsage:
    return EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)
