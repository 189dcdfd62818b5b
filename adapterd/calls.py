"""What the sync and the async client share: every RPC's path and types, the channel's options, retries."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

os.environ.setdefault(
    "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", "true"
)  # read when gRPC makes a channel first

import grpc
from google.protobuf.message import Message

from adapterd.errors import Error, from_status
from adapterd.routing import ROUTE
from adapterd.v1 import adapters_pb2, inference_pb2, replicas_pb2, training_pb2

INFERENCE = "adapterd.v1.Inference"
ADAPTERS = "adapterd.v1.Adapters"
REPLICAS = "adapterd.v1.Replicas"
TRAINING = "adapterd.v1.Training"
DEFAULT_SERVER = "127.0.0.1:50051"
MAX_MESSAGE_BYTES = 8 << 20  # the server's default for a request

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
TOKEN_VARIABLE = "ADAPTERD_TOKEN"
TLS_VARIABLES = ("ADAPTERD_CA", "ADAPTERD_CERTIFICATE", "ADAPTERD_KEY")
Outcome = inference_pb2.PredictResponse | Error
MAX_PARTS = 32  # of a batch that are on their way at a time
RING_VARIABLE = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # what a replica that ends had in hand
CLOSED = "the client is closed"
LOCAL_POOL = "grpc.use_local_subchannel_pool"
PRINTABLE_ASCII = re.compile(r"[ -~]+")  # what a metadata value may hold


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Request, Response]):
    """One RPC of the contract."""

    path: str
    request: type[Request]
    response: type[Response]

    def arguments(self) -> dict[str, Any]:
        """For the channel's multi-callables."""
        return {
            "method": self.path,
            "request_serializer": self.request.SerializeToString,
            "response_deserializer": self.response.FromString,
        }


PREDICT = Rpc(f"/{INFERENCE}/Predict", inference_pb2.PredictRequest, inference_pb2.PredictResponse)
PREDICT_BATCH = Rpc(f"/{INFERENCE}/PredictBatch", inference_pb2.PredictBatchRequest, inference_pb2.PredictBatchResponse)
PREDICT_STREAM = Rpc(
    f"/{INFERENCE}/PredictStream", inference_pb2.PredictStreamRequest, inference_pb2.PredictStreamResponse
)
LIST = Rpc(f"/{ADAPTERS}/List", adapters_pb2.ListRequest, adapters_pb2.ListResponse)
GET = Rpc(f"/{ADAPTERS}/Get", adapters_pb2.GetRequest, adapters_pb2.GetResponse)
LOAD = Rpc(f"/{ADAPTERS}/Load", adapters_pb2.LoadRequest, adapters_pb2.LoadResponse)
UNLOAD = Rpc(f"/{ADAPTERS}/Unload", adapters_pb2.UnloadRequest, adapters_pb2.UnloadResponse)
PUBLISH = Rpc(f"/{ADAPTERS}/Publish", adapters_pb2.PublishRequest, adapters_pb2.PublishResponse)
PIN = Rpc(f"/{ADAPTERS}/Pin", adapters_pb2.PinRequest, adapters_pb2.PinResponse)
PREFETCH = Rpc(f"/{ADAPTERS}/Prefetch", adapters_pb2.PrefetchRequest, adapters_pb2.PrefetchResponse)
SET_TRAFFIC = Rpc(f"/{ADAPTERS}/SetTraffic", adapters_pb2.SetTrafficRequest, adapters_pb2.SetTrafficResponse)
REPLICAS_LIST = Rpc(f"/{REPLICAS}/List", replicas_pb2.ListReplicasRequest, replicas_pb2.ListReplicasResponse)
TRAIN = Rpc(f"/{TRAINING}/Train", training_pb2.TrainRequest, training_pb2.TrainResponse)

# The standard health check of the whole server, by hand: grpcio-health-checking is no dependency of a client.
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_REQUEST = b""  # HealthCheckRequest(service="")
HEALTH_SERVING = b"\x08\x01"  # HealthCheckResponse(status=SERVING)


def channel_options(max_retries: int, connections: int = 1) -> list[tuple[str, Any]]:
    """gRPC itself retries what was refused for now, after as long as the server's pushback says.

    max_retries   0 hands every refusal to the caller at once; gRPC's own limit is 4
    connections   channels of one client: each has its own only if it is told so

    Raises ValueError for no connection.
    """
    if connections < 1:
        raise ValueError(f"connections {connections} must be at least 1")
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_retries", int(max_retries > 0)),
        (LOCAL_POOL, int(connections > 1)),
    ]
    if max_retries > 0:
        options.append(("grpc.service_config", _service_config(max_retries)))
    return options


def cluster_options(max_retries: int, connections: int, host: str) -> list[tuple[str, Any]]:
    """Of channels to several replicas.

    host   that their certificates name. Raises ValueError for no connection, and where gRPC was told not to hash.
    """
    if (told := os.environ.get(RING_VARIABLE, "")).lower() not in ("true", "1", "yes"):
        raise ValueError(f"{RING_VARIABLE} is {told!r}; a client of a cluster needs it to be true, or not set")
    shared = [option for option in channel_options(max_retries, connections) if option[0] != LOCAL_POOL]
    return [*shared, ("grpc.default_authority", host)]


def _service_config(max_retries: int) -> str:
    retry_policy = {
        "maxAttempts": max_retries + 1,
        "initialBackoff": "0.05s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"],
    }
    services = [{"service": name} for name in (INFERENCE, ADAPTERS, REPLICAS)]
    return json.dumps({"methodConfig": [{"name": services, "retryPolicy": retry_policy}]})


def require_size(message: Message, max_message_bytes: int) -> None:
    """Raises Error for what the server would refuse unread; it is not worth sending, and less so several times."""
    size = message.ByteSize()
    if size > max_message_bytes:
        raise Error(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the request has {size} bytes, the limit is {max_message_bytes}; split it, or raise max_message_bytes "
            "here and on the server",
        )


Metadata = tuple[tuple[str, str], ...]


def routed_adapter(request: Message) -> str:
    """The adapter that a call is routed by: its own, or that of all its requests; empty if any replica will do."""
    if isinstance(request, inference_pb2.PredictBatchRequest):
        names = {one.adapter for one in request.requests}
        name = names.pop() if len(names) == 1 else ""
    else:
        name = request.adapter if isinstance(request, inference_pb2.PredictRequest) else ""
    return name if PRINTABLE_ASCII.fullmatch(name) else ""


def adapter_metadata(adapter: str) -> Metadata:
    """The adapter's name for what balances, a router in front or gRPC itself: it keeps its requests together unread."""
    return ((ROUTE, adapter),) if adapter else ()


@dataclass(frozen=True, slots=True)
class Part:
    """The requests of a batch that are for one adapter, and where in it they stand."""

    positions: tuple[int, ...]
    message: inference_pb2.PredictBatchRequest


def parts_of(requests: Sequence[inference_pb2.PredictRequest]) -> list[Part]:
    positions: dict[str, list[int]] = {}
    for position, request in enumerate(requests):
        positions.setdefault(request.adapter, []).append(position)
    return [
        Part(tuple(those), inference_pb2.PredictBatchRequest(requests=[requests[position] for position in those]))
        for those in positions.values()
    ]


def gathered(parts: Sequence[Part], outcomes: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """The outcomes of all parts in the order of the batch."""
    found = {
        position: outcome
        for part, those in zip(parts, outcomes, strict=True)
        for position, outcome in zip(part.positions, those, strict=True)
    }
    return [found[position] for position in sorted(found)]


def until_of(timeout: float | None) -> float | None:
    """The moment, by time.monotonic, that is so many seconds away."""
    return None if timeout is None else time.monotonic() + timeout


def left_until(until: float | None) -> Any:
    """Seconds from now on, None for ever."""
    return None if until is None else max(0.0, until - time.monotonic())


def channel_to(
    target: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]]
) -> grpc.Channel:
    """A blocking one; without credentials in the clear."""
    return grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)


def token_metadata(token: str | None) -> Metadata:
    """token   None: what the variable ADAPTERD_TOKEN holds, if it is set"""
    token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    return (("authorization", f"Bearer {token}"),) if token else ()


def credentials_of(credentials: grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
    """Those given, or those of the PEM files that variables name; None for a channel in the clear.

    Raises OSError for a file that cannot be read.
    """
    if credentials is not None:
        return credentials
    ca, certificate, key = (_read_named(variable) for variable in TLS_VARIABLES)
    if not (ca or certificate):
        return None
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _read_named(variable: str) -> bytes | None:
    path = os.environ.get(variable)
    return Path(path).read_bytes() if path else None


def outcome_of(message: inference_pb2.Outcome | inference_pb2.PredictStreamResponse) -> Outcome:
    return from_status(message.error) if message.HasField("error") else message.response


def require_serving(answer: bytes) -> None:
    """Raises Error unless the answer to a health check says SERVING."""
    if answer != HEALTH_SERVING:
        raise Error(grpc.StatusCode.UNAVAILABLE, "the server is up and does not serve; it may be draining")
