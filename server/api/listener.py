"""Stage 0, the port: one gRPC server with every service, from SERVING to the end of its drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from adapterd.v1 import adapters_pb2, inference_pb2, replicas_pb2
from adapters_cache.version_files import VersionFiles
from server.api import oip
from server.api.admin import AdaptersServicer
from server.api.answering import Answering
from server.api.certificates import Certificates
from server.api.gate import Gate
from server.api.handlers import service_handler
from server.api.health import HealthServicer
from server.api.publish import Publisher
from server.api.reflected import reflection_pool
from server.api.replicas import ReplicasServicer
from server.api.servicer import InferenceServicer
from server.config import ApiConfig
from server.errors import InvalidInput
from server.metrics import Metrics
from server.oip.tensors import Limits
from server.pipeline import Pipeline
from server.replicas import Replicas

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"]
ADAPTERS = adapters_pb2.DESCRIPTOR.services_by_name["Adapters"]
REPLICAS = replicas_pb2.DESCRIPTOR.services_by_name["Replicas"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
SERVICES = (INFERENCE.full_name, ADAPTERS.full_name, REPLICAS.full_name, oip.PUBLIC_NAME)

# Calls that gRPC has received and not handed over would end as CANCELLED; this long they are told UNAVAILABLE.
LINGER_S = 0.1
# What is left after the drain is idle streams and health watchers, which never end by themselves.
STOP_GRACE_S = 0.25

MAX_STREAMS = 1024  # calls of one connection at a time
MAX_METADATA_BYTES = 16 << 10
HANDSHAKE_TIMEOUT_MS = 10_000  # whoever connects and says nothing

log = logging.getLogger("adapterd")


class Listener:
    """base   as the Adapters service tells of it
    gate   tells callers apart
    answering   answers requests, whatever they are written in
    more   further services, each with what answers it
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: ApiConfig,
        base: adapters_pb2.Base,
        metrics: Metrics,
        gate: Gate,
        answering: Answering,
        more: Sequence[tuple[ServiceDescriptor, object]] = (),
    ) -> None:
        self._answering = answering
        self._gate = gate
        self._more = more
        self._pipeline = pipeline
        self._config = config
        self._base = base
        self._metrics = metrics
        self._health = HealthServicer(SERVICES)
        self._replicas = Replicas(config)
        self._certificates: Certificates | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int, *, shared: bool = False) -> int:
        """Listen on `port` and turn SERVING; gives the port, which is another one if it was 0.

        shared   other processes of this server listen on it too

        Raises InvalidInput if the port cannot be had, or the certificates cannot be read.
        """
        host, gate = self._config.host, self._gate
        server = grpc.aio.server(options=_options(self._config, shared))
        most = self._config.max_requests_per_batch
        inference = InferenceServicer(self._answering, most, gate.caller, self._replicas)
        engine, folder = self._pipeline.engine, self._config.publish_folder
        info = self._pipeline.tokenizer.base
        protocol = oip.OipServicer(
            engine,
            self._answering,
            info,
            Limits(self._config.max_inputs_per_request, info.max_tokens),
            lambda: self._health.is_serving,
            gate.caller,
            gate.audit,
        )
        publisher = Publisher(
            engine,
            Path(folder) if folder else None,
            self._config.max_publish_bytes,
            gate.audit,
            info,
            VersionFiles(Path(folder)) if folder and self._config.replicas else None,
        )
        handlers = (
            service_handler(INFERENCE, inference, gate.caller),
            service_handler(ADAPTERS, AdaptersServicer(engine, self._base, publisher, gate.audit), gate.caller),
            service_handler(REPLICAS, ReplicasServicer(self._replicas), gate.caller),
            service_handler(oip.SERVICE, protocol, gate.caller, name=oip.PUBLIC_NAME, open_methods=oip.OPEN_METHODS),
            oip.refusing(),
            # probes have no credentials
            service_handler(HEALTH, self._health, gate.caller, open_methods=[one.name for one in HEALTH.methods]),
            *(service_handler(service, servicer, gate.caller) for service, servicer in self._more),
        )
        server.add_generic_rpc_handlers(handlers)
        more = [service.full_name for service, _ in self._more]
        shown = (*SERVICES, *more, HEALTH.full_name, reflection.SERVICE_NAME)
        pool = reflection_pool([name for name in shown if name != oip.PUBLIC_NAME])
        reflection.enable_server_reflection(shown, server, pool=pool)
        try:
            bound = await self._bind(server, f"{host}:{port}")
        except RuntimeError as error:
            raise InvalidInput(
                f"{host}:{port} cannot be bound; choose another port, or see with adapterd doctor who has it"
            ) from error
        await self._replicas.start(bound)
        await server.start()
        self._server = server
        self._health.set_serving(True)
        return bound

    async def _bind(self, server: grpc.aio.Server, address: str) -> int:
        config = self._config
        if not config.tls_certificate:
            return server.add_insecure_port(address)
        self._certificates = Certificates(config, self._metrics)
        await self._certificates.start()
        return server.add_secure_port(address, self._certificates.credentials)

    def set_serving(self, is_serving: bool) -> None:
        """What health checks are told."""
        self._health.set_serving(is_serving)

    async def drain(self) -> int:
        """NOT_SERVING, a short time for balancers to notice, refuse, answer the accepted, then stop.

        Gives the number of requests that took longer than `drain_timeout_s`.
        """
        assert self._server is not None, "drain follows start"
        admission = self._pipeline.admission
        log.info("draining")
        self._health.set_serving(False)
        await asyncio.sleep(self._config.lame_duck_s)
        is_empty = await admission.drain(self._config.drain_timeout_s)
        await asyncio.sleep(LINGER_S)
        await self._server.stop(STOP_GRACE_S)
        await self._replicas.stop()
        if self._certificates is not None:
            await self._certificates.stop()
        num_unanswered = 0 if is_empty else admission.num_in_flight
        log.info("stopped unanswered=%d", num_unanswered)
        return num_unanswered


def _options(api: ApiConfig, shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", api.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(shared)),  # a second server on the port must fail, not share it
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_ms", 30 * 60 * 1000),  # so that clients find new replicas in time
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
    ]
