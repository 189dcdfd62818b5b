"""Embeddings in OpenAI's shape: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
import time
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from adapterd.v1 import inference_pb2 as v1
from server.api.answering import Answering, Asked
from server.core import BASE, Tenant, Wanted
from server.engine import Engine
from server.errors import InvalidInput
from server.http.bridge import Bridge
from server.oip.tensors import Limits
from server.tracing import parent_of

MAX_LISTED = 10_000
After = Annotated[str, Query(description="The `last_id` of the page before")]
Limit = Annotated[int, Query(ge=1, le=MAX_LISTED)]
WRONG_INPUT = "input is neither a text nor a list of token ids, nor a list of such"


class EmbeddingsRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"model": "base", "input": ["a fine film", "a dull one"]}})

    model: str = Field(description="An adapter without a head, a composition of them, or base")
    input: Any = Field(description="A text, token ids, or a list of either")
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
    has_more: bool
    last_id: str | None = Field(description="What the next page is asked for with, as `after`")


def router(engine: Engine, answering: Answering, bridge: Bridge, limits: Limits) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["OpenAI"])
    started = int(time.time())

    @api.post("/embeddings", summary="Embeddings of texts, scaled to unit length")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        def read() -> Asked:
            inputs = _inputs(body.input, limits)
            parameters = v1.Parameters(normalize=True)
            return Asked(v1.PredictRequest(adapter=body.model, inputs=inputs, parameters=parameters))

        async def work(tenant: Tenant) -> EmbeddingsResponse:
            parent = parent_of(request.headers.items())
            return await answering.answer(
                "embeddings", body.model, read, tenant, parent, shape=partial(_shaped, body=body)
            )

        return await bridge.call(request, work)

    @api.get("/models", summary="What can be named as a model")
    async def models(request: Request, after: After = "", limit: Limit = MAX_LISTED) -> ModelsResponse:
        async def work(tenant: Tenant) -> list[str]:
            """One more than asked for, where there is one. The base comes first."""
            first = [BASE] if not after and tenant.may_use(BASE) else []
            behind = "" if after == BASE else after
            page, _ = await engine.list(Wanted(tenant=tenant), after=behind, limit=limit + 1 - len(first))
            return [*first, *(status.name for status in page)]

        names = await bridge.call(request, work)
        shown = [ModelItem(id=name, created=started) for name in names[:limit]]
        return ModelsResponse(data=shown, has_more=len(names) > limit, last_id=shown[-1].id if shown else None)

    return api


def _inputs(source: Any, limits: Limits) -> list[v1.Input]:
    """Raises InvalidInput at the first that is none. Checked here and not by pydantic, which would list them all."""
    items = source if isinstance(source, list) and not (source and isinstance(source[0], int)) else [source]
    if len(items) > limits.max_inputs:
        raise InvalidInput(f"{len(items)} inputs exceed the limit of {limits.max_inputs} per request")
    return [_input(item, limits) for item in items]


def _input(item: Any, limits: Limits) -> v1.Input:
    if isinstance(item, list) and len(item) > limits.max_tokens:
        raise InvalidInput(f"an input has {len(item)} tokens, the limit is {limits.max_tokens}")
    try:
        if isinstance(item, str):
            return v1.Input(text=v1.Text(text=item))
        if isinstance(item, list):
            return v1.Input(tokens=v1.Tokens(input_ids=item))
    except (TypeError, ValueError) as error:  # a ValueError is also half a character
        raise InvalidInput(WRONG_INPUT) from error
    raise InvalidInput(WRONG_INPUT)


def _shaped(response: v1.PredictResponse, body: EmbeddingsRequest) -> EmbeddingsResponse:
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
    num_tokens = sum(result.num_tokens for result in response.results)
    return EmbeddingsResponse(
        model=body.model,
        data=[
            EmbeddingItem(index=index, embedding=_encoded(result, body))
            for index, result in enumerate(response.results)
        ],
        usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _encoded(result: v1.Result, body: EmbeddingsRequest) -> list[float] | str:
    if body.encoding_format == "float":
        return list(result.embedding.values)
    return base64.b64encode(np.array(result.embedding.values, "<f4").tobytes()).decode()
