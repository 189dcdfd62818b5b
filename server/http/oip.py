"""The Open Inference Protocol over HTTP: /v2, JSON with or without binary tensors behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.exceptions import HTTPException

from adapterd.oip.v2 import inference_pb2 as v2
from adapterd.routing import ROUTE
from adapterd.v1 import inference_pb2 as v1
from server.api.answering import Answering, Asked
from server.api.oip import EXTENSIONS, OipServicer, check_output, earlier
from server.api.servicer import check_route
from server.core import Tenant
from server.errors import InvalidInput
from server.http.bridge import Bridge
from server.oip import tensors
from server.oip.answers import to_tensors
from server.oip.models import PLATFORM
from server.oip.requests import Value, timeout_s, to_predict
from server.oip.tensors import Limits, Tensor
from server.tracing import parent_of

HEADER_LENGTH = "inference-header-content-length"
BINARY_SIZE, BINARY, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
EXAMPLE = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a fine film"]}]}
BODY = {"requestBody": {"content": {"application/json": {"example": EXAMPLE}}}}
T = TypeVar("T", bound=Message)

Model = Annotated[str, Path(description="An adapter, a composition, or base")]
Version = Annotated[str, Path(description="A digest, or its first 8 digits or more")]


def router(servicer: OipServicer, answering: Answering, bridge: Bridge, version: str) -> APIRouter:
    """`servicer` answers what is the same over gRPC."""
    api = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    async def ask(request: Request, method: str, message: Message) -> JSONResponse:
        async def work(tenant: Tenant) -> Message:
            response: Message = await getattr(servicer, method)(message, None, tenant)
            return response

        return JSONResponse(_dict(await bridge.call(request, work)))

    @api.get("/health/live", summary="Whether the process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @api.get("/health/ready", summary="Whether the server takes requests")
    async def ready() -> JSONResponse:
        is_ready = servicer.is_serving()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    @api.get("", summary="Name, version and extensions of the server")
    async def server_metadata() -> dict[str, Any]:
        return {"name": PLATFORM, "version": version, "extensions": EXTENSIONS}

    async def model_ready(request: Request, name: Model, version: str = "") -> JSONResponse:
        async def work(tenant: Tenant) -> bool:
            return await servicer.is_ready(name, version, tenant)

        is_ready = await bridge.call(request, work)
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 400)

    async def model_metadata(request: Request, name: Model, version: str = "") -> JSONResponse:
        return await ask(request, "ModelMetadata", v2.ModelMetadataRequest(name=name, version=version))

    async def model_config(request: Request, name: Model, version: str = "") -> JSONResponse:
        async def work(tenant: Tenant) -> v2.ModelConfigResponse:
            message = v2.ModelConfigRequest(name=name, version=version)
            return await servicer.ModelConfig(message, None, tenant)

        return JSONResponse(_dict((await bridge.call(request, work)).config))

    async def model_stats(request: Request, name: str = "", version: str = "") -> JSONResponse:
        return await ask(request, "ModelStatistics", v2.ModelStatisticsRequest(name=name, version=version))

    async def infer(request: Request, name: Model, version: str = "") -> Response:
        body = await request.body()
        header_length = request.headers.get(HEADER_LENGTH)
        route = request.headers.get(ROUTE, name)
        parsed: list[_Asked] = []  # by `read`, which is part of what is counted

        def read() -> Asked:
            check_route(route, name)
            asked = _Asked(*_split(body, header_length), servicer.limits)
            parsed.append(asked)
            message = to_predict(name, version, asked.inputs, asked.parameters, asked.output_names)
            return Asked(message, earlier(None, timeout_s(asked.parameters)))

        def shape(response: v1.PredictResponse) -> tuple[str, list[Tensor]]:
            return response.digest, to_tensors(response, parsed[0].output_names)

        async def work(tenant: Tenant) -> tuple[str, list[Tensor]]:
            parent = parent_of(request.headers.items())
            return await answering.answer("infer", name, read, tenant, parent, shape=shape)

        digest, answers = await bridge.call(request, work)
        head = {"model_name": name, "model_version": digest}
        if parsed[0].id:
            head["id"] = parsed[0].id
        return _response(head, answers, parsed[0])

    api.add_api_route("/models/stats", model_stats, methods=["GET"], summary="What was asked of all models")

    # models whose names have a slash come whole: what is asked of them stands at the end
    async def infer_is_posted(name: str, version: str = "") -> Response:
        raise HTTPException(405, "infer is asked by POST", {"allow": "POST"})

    for path, handler, methods, summary in (
        ("/ready", model_ready, ["GET"], "Whether a model can be asked for"),
        ("/config", model_config, ["GET"], "Configuration of a model"),
        ("/stats", model_stats, ["GET"], "What was asked of a model since the start"),
        ("/infer", infer, ["POST"], "Ask a model"),
        ("", model_metadata, ["GET"], "Tensors of a model"),
    ):
        extra = BODY if path == "/infer" else None
        for place in ("/models/{name:path}/versions/{version}", "/models/{name:path}"):
            api.add_api_route(place + path, handler, methods=methods, summary=summary, openapi_extra=extra)
            if path == "/infer":  # or the metadata of a model of that name would be meant
                api.add_api_route(place + path, infer_is_posted, methods=["GET"], include_in_schema=False)

    @api.post("/repository/index", summary="Every model, and whether it can be asked for")
    async def index(request: Request) -> JSONResponse:
        body = _json(await request.body() or b"{}")
        message = v2.RepositoryIndexRequest(ready=bool(body.get("ready")))

        async def work(tenant: Tenant) -> v2.RepositoryIndexResponse:
            return await servicer.RepositoryIndex(message, None, tenant)

        return JSONResponse([_dict(model) for model in (await bridge.call(request, work)).models])

    @api.post("/repository/models/{name:path}/load", summary="Read a model from its origin again")
    async def load(request: Request, name: Model) -> JSONResponse:
        parameters = _object(_json(await request.body() or b"{}"), "parameters")
        message = v2.RepositoryModelLoadRequest(model_name=name)
        for key in parameters:
            message.parameters[key].string_param = ""
        return await ask(request, "RepositoryModelLoad", message)

    @api.post("/repository/models/{name:path}/unload", summary="Give back what a model holds")
    async def unload(request: Request, name: Model) -> JSONResponse:
        await request.body()
        return await ask(request, "RepositoryModelUnload", v2.RepositoryModelUnloadRequest(model_name=name))

    return api


class _Asked:
    """The parts of a request. Raises InvalidInput.

    data   what stands behind the JSON: binary tensors in the order of the inputs that say so
    """

    def __init__(self, body: Mapping[str, Any], data: bytes, limits: Limits) -> None:
        self.id = _text(body, "id") if "id" in body else ""
        self.parameters = _parameters(_object(body, "parameters"))
        self.outputs = _list(body, "outputs")
        self.output_names = [_text(output, "name") for output in self.outputs]
        for output in self.outputs:
            check_output(output["name"], _object(output, "parameters"))
        self.inputs: list[Tensor] = []
        at = 0
        for one in _list(body, "inputs"):
            name, datatype, shape = _text(one, "name"), _text(one, "datatype"), _shape(one)
            limits.check(name, datatype, shape)
            size = _object(one, "parameters").get(BINARY_SIZE)
            if size is None:
                self.inputs.append(tensors.from_json(name, datatype, shape, one.get("data", [])))
                continue
            if not isinstance(size, int) or not 0 <= size <= len(data) - at:
                raise InvalidInput(f"input {name[:64]!r} says {str(size)[:20]} bytes and {len(data) - at} follow")
            self.inputs.append(tensors.from_raw(name, datatype, shape, data[at : at + size]))
            at += size
        if at != len(data):
            raise InvalidInput(f"{len(data) - at} bytes follow the last input")

    def is_binary(self, name: str) -> bool:
        """Whether an output goes behind the JSON."""
        for output in self.outputs:
            if output["name"] == name and BINARY in _object(output, "parameters"):
                return bool(output["parameters"][BINARY])
        return bool(self.parameters.get(BINARY_OUTPUT))


def _response(head: dict[str, Any], answers: list[Tensor], asked: _Asked) -> Response:
    outputs, data = [], b""
    for answer in answers:
        output: dict[str, Any] = {"name": answer.name, "datatype": answer.datatype, "shape": answer.shape}
        if asked.is_binary(answer.name):
            binary = tensors.raw(answer)
            output["parameters"] = {BINARY_SIZE: len(binary)}
            data += binary
        else:
            output["data"] = tensors.as_json(answer)
        outputs.append(output)
    body = {**head, "outputs": outputs}
    if not data:
        return JSONResponse(body)
    text = json.dumps(body).encode()
    return Response(text + data, headers={HEADER_LENGTH: str(len(text))}, media_type="application/octet-stream")


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    if header_length is None:
        return _json(body), b""
    if not header_length.isdecimal() or int(header_length) > len(body):
        raise InvalidInput(f"{HEADER_LENGTH} {header_length[:20]!r} is not a length within the {len(body)} bytes sent")
    return _json(body[: int(header_length)]), body[int(header_length) :]


def _json(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{len(data)} bytes are no JSON: {str(error)[:128]}") from error
    if not isinstance(body, dict):
        raise InvalidInput("the JSON is not an object")
    return body


def _object(body: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key, {})
    if not isinstance(value, dict):
        raise InvalidInput(f"{key!r} is not an object")
    return value


def _list(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = body.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidInput(f"{key!r} is not a list of objects")
    return value


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidInput(f"there is no {key!r} that is a printable text")
    return value


def _shape(body: Mapping[str, Any]) -> list[int]:
    shape = body.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InvalidInput(f"input {str(body.get('name'))[:64]!r} has no shape of whole numbers")
    return shape


def _parameters(values: Mapping[str, Any]) -> dict[str, Value]:
    for name, value in values.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidInput(f"parameter {name[:64]!r} is not a number, a text, true or false")
    return dict(values)


def _dict(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(body, message.DESCRIPTOR)


def _with_numbers(body: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """64-bit numbers are texts in protobuf's JSON; in the protocol's they are numbers."""
    for field in descriptor.fields:
        value = body.get(field.name)
        if value is None or field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None:
            for part in value if isinstance(value, list) else [value]:
                _with_numbers(part, field.message_type)
        elif field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
            body[field.name] = [int(one) for one in value] if isinstance(value, list) else int(value)
    return body
