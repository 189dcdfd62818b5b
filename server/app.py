"""Builds every part once, starts them in order, stops them in reverse."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from adapterd.v1 import adapters_pb2, inference_pb2
from adapters_cache.adapters import Adapters
from adapters_cache.compositions import Compositions
from adapters_cache.residency import Residency
from server.admission import Admission
from server.api.admin import AdaptersServicer
from server.api.handlers import service_handler
from server.api.health import HealthServicer
from server.api.servicer import InferenceServicer
from server.config import ApiConfig, SchedulerConfig, ServerConfig
from server.errors import InvalidInput
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.calibration import calibrate_runner
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.pipeline import Pipeline
from server.probe import Prober, load_plain
from server.scheduler.scheduler import Scheduler
from server.tokenizer import Tokenizer

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"]
ADAPTERS = adapters_pb2.DESCRIPTOR.services_by_name["Adapters"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
SERVICES = (INFERENCE.full_name, ADAPTERS.full_name)

# Calls that gRPC has received and not handed over would end as CANCELLED; this long they are told UNAVAILABLE.
LINGER_S = 0.1
# What is left after the drain is idle streams and health watchers, which never end by themselves.
STOP_GRACE_S = 0.25

log = logging.getLogger("adapterd")


class App:
    """One server process. `start` raises before anything listens if the configuration cannot be served."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.health = HealthServicer(SERVICES)
        self.admission = Admission(config.api.max_in_flight, self.metrics)
        self.grpc_port = 0
        self.http_port = 0
        self._running = AsyncExitStack()

    async def start(self) -> None:
        async with AsyncExitStack() as started:  # stops what has started if a later part cannot
            await self._start(started)
            self._running = started.pop_all()

    async def stop(self) -> None:
        """Turn away, answer what was accepted, then stop every part."""
        await self._running.aclose()

    async def _start(self, started: AsyncExitStack) -> None:
        base = await asyncio.to_thread(load_base, self.config.model)
        self.base = _describe(base)
        pipeline = await self._start_engine(base, started)
        self._start_http(started)
        await self._start_grpc(pipeline, started)
        self.metrics.build(version=version("adapterd"), base=self.base.name, device=self.base.device)
        log.info("serving base=%s device=%s grpc_port=%d http_port=%d", *self._facts())

    async def _start_engine(self, base: Base, started: AsyncExitStack) -> Pipeline:
        """Everything between the wire and the device, the device's end first."""
        config, metrics = self.config, self.metrics
        bank = SlotBank(base.device, base.dtype)
        runner = Runner(base, bank, metrics)
        scheduling = await self._with_budget(runner)
        runner.start()
        started.push_async_callback(asyncio.to_thread, runner.stop)
        residency = Residency(bank, config.cache.device_bytes, metrics)
        self.scheduler = scheduler = Scheduler(scheduling, residency.acquire, runner.run, metrics)
        residency.on_room = scheduler.notify
        await scheduler.start()
        started.push_async_callback(scheduler.stop)
        is_cuda = base.device.type == "cuda"
        prober = await self._start_prober(scheduler, started)
        self.adapters = Adapters(
            config.cache,
            base.info,
            base.dtype,
            residency,
            metrics,
            weights=base,
            pin_memory=is_cuda,
            check=prober.check_adapter if prober else None,
        )
        await self.adapters.start()
        started.push_async_callback(self.adapters.stop)
        self.compositions = Compositions(self.adapters, config.cache, base.info)
        await self.compositions.start()
        tokenizer = await asyncio.to_thread(Tokenizer, base.tokenizer_path, base.info, config.api.num_tokenizer_threads)
        started.callback(tokenizer.close)
        return Pipeline(self.admission, tokenizer, self.compositions, scheduler, metrics, base.info.fingerprint)

    async def _with_budget(self, runner: Runner) -> SchedulerConfig:
        """The scheduler's configuration with the batch budget that was asked for, or a measured one."""
        config = self.config.scheduler
        if not config.max_batch_tokens:
            loop = asyncio.get_running_loop()
            found = await asyncio.to_thread(calibrate_runner, runner, loop, config.max_batch_samples)
            config = replace(config, max_batch_tokens=found.budget_tokens)
            rates = " ".join(f"{tokens}:{rate:.0f}" for tokens, rate in found.rates.items())
            log.info("batch_tokens=%d seconds=%.1f tokens/s %s", config.max_batch_tokens, found.seconds, rates)
        self.metrics.batch_budget(config.max_batch_tokens)
        return config

    async def _start_prober(self, scheduler: Scheduler, started: AsyncExitStack) -> Prober | None:
        """What proves adapters at load, if that is asked for: it holds a second, plain copy of the base."""
        config = self.config
        if not config.cache.verify_at_load:
            return None
        plain = await asyncio.to_thread(load_plain, config.model)
        plain.start()
        started.push_async_callback(asyncio.to_thread, plain.stop)
        return Prober(scheduler, plain, config.cache.verify_tolerance)

    def _start_http(self, started: AsyncExitStack) -> None:
        """Metrics, from a thread of their own: a scrape never waits for the event loop."""
        api = self.config.api
        try:
            server, _ = start_http_server(api.http_port, api.host, self.metrics.registry)
        except OSError as error:
            raise InvalidInput(f"{api.host}:{api.http_port} cannot be bound; choose another http_port") from error
        self.http_port = server.server_port
        started.callback(server.server_close)
        started.push_async_callback(asyncio.to_thread, server.shutdown)

    async def _start_grpc(self, pipeline: Pipeline, started: AsyncExitStack) -> None:
        api = self.config.api
        server = grpc.aio.server(options=_options(api))
        server.add_generic_rpc_handlers(
            (
                service_handler(INFERENCE, InferenceServicer(pipeline, api, self.metrics)),
                service_handler(ADAPTERS, AdaptersServicer(self.compositions, self.base)),
                service_handler(HEALTH, self.health),
            )
        )
        reflection.enable_server_reflection((*SERVICES, HEALTH.full_name, reflection.SERVICE_NAME), server)
        try:
            self.grpc_port = server.add_insecure_port(f"{api.host}:{api.port}")
        except RuntimeError as error:
            raise InvalidInput(f"{api.host}:{api.port} cannot be bound; choose another port") from error
        await server.start()
        started.push_async_callback(partial(self._drain, server))
        self.health.set_serving(True)

    async def _drain(self, server: grpc.aio.Server) -> None:
        """NOT_SERVING, a short time for balancers to notice, refuse, answer the accepted, then stop."""
        api = self.config.api
        log.info("draining")
        self.health.set_serving(False)
        await asyncio.sleep(api.lame_duck_s)
        is_empty = await self.admission.drain(api.drain_timeout_s)
        await asyncio.sleep(LINGER_S)
        await server.stop(STOP_GRACE_S)
        log.info("stopped unanswered=%d", 0 if is_empty else self.admission.num_in_flight)

    def _facts(self) -> tuple[str, str, int, int]:
        return self.base.name, self.base.device, self.grpc_port, self.http_port


def _options(api: ApiConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", api.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_ms", 30 * 60 * 1000),  # so that clients find new replicas in time
    ]


def _describe(base: Base) -> adapters_pb2.Base:
    info = base.info
    return adapters_pb2.Base(
        name=info.name,
        model_type=info.model_type,
        hidden_size=info.hidden_size,
        num_layers=info.num_layers,
        fingerprint=info.fingerprint,
        device=str(base.device),
        dtype=str(base.dtype).removeprefix("torch."),
        max_tokens_per_input=info.max_tokens,
    )
