"""Builds every part once, starts them in order, stops them in reverse."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from adapterd.v1 import adapters_pb2
from adapters_cache.adapters import Adapters
from adapters_cache.compositions import Compositions
from adapters_cache.residency import Residency
from server.admission import Admission
from server.api.answering import Answering
from server.api.gate import Gate
from server.api.listener import Listener
from server.api.oip import OipServicer
from server.audit import Audit
from server.canary import Canary
from server.config import SchedulerConfig, ServerConfig, is_loopback
from server.difference import tolerance_of
from server.engine import Engine, LocalEngine
from server.errors import DeviceFault, InvalidInput
from server.fronts.supervisor import Supervisor
from server.http.app import Parts, make_app
from server.http.bridge import Bridge
from server.http.server import HttpServer
from server.http.state import State
from server.ledger import Ledger
from server.memory import heap_bytes
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.calibration import calibrate_runner
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.oip.tensors import Limits
from server.pipeline import Pipeline
from server.probe import Prober, load_plain
from server.recent import Recent
from server.restart import num_before
from server.scheduler.scheduler import Scheduler
from server.tenants import Tenants, read_tenants
from server.threads import full_pool, run_alone
from server.tokenizer import Tokenizer, serialized
from server.totals import Totals
from server.tracing import tracing_of
from server.watched import Watched

log = logging.getLogger("adapterd")

NUM_WORKERS = 6  # threads for whatever blocks for a moment

MoreServices = Callable[[ServerConfig, Base], Sequence[tuple[ServiceDescriptor, object]]]


class App:
    """One server. `start` raises before anything listens if the configuration cannot be served.

    more   further services that work on the base; not with front processes, which have none
    """

    def __init__(self, config: ServerConfig, more: MoreServices = lambda config, base: ()) -> None:
        self.config = config
        self._more = more
        self.metrics = Metrics()
        self.totals = Totals(self.metrics)
        self.recent = Recent()
        api = config.api
        self._tenants_file = Watched([Path(api.tenants)] if api.tenants else [], api.reload_s, self._reload_tenants)
        self.tenants = Tenants(read_tenants(Path(api.tenants))) if api.tenants else Tenants()
        self.audit = Audit(config.api.audit_log)
        self.gate = Gate(self.tenants, self.audit, self.metrics)
        self.failed = asyncio.Event()  # the device answers nothing any more: end the process and start another
        self.grpc_port = 0
        self.http_port = 0
        self._is_serving = False
        self._set_serving: Callable[[bool], None] = lambda is_serving: None
        self._running = AsyncExitStack()

    @property
    def is_serving(self) -> bool:
        return self._is_serving and not self.failed.is_set()

    async def start(self) -> None:
        async with AsyncExitStack() as started:  # stops what has started if a later part cannot
            await self._start(started)
            self._running = started.pop_all()

    async def stop(self) -> None:
        """Turn away, answer what was accepted, then stop every part."""
        await self._running.aclose()

    async def _start(self, started: AsyncExitStack) -> None:
        started.callback(self.audit.close)
        self._warn()
        asyncio.get_running_loop().set_default_executor(full_pool(NUM_WORKERS))
        self.metrics.watch_heap(heap_bytes)
        self.metrics.device_fault(num_before())
        base = await run_alone(load_base, self.config.model)
        self.base = _describe(base)
        self.ledger = self._start_ledger(started)
        self.admission = Admission(self.config.api, self.metrics, base.info, self.tenants, self.ledger)
        engine = await self._start_engine(base, started)
        pipeline = await self._start_pipeline(engine, base, started)
        await self._start_http(pipeline, started)
        if self.config.api.frontends:
            await self._start_fronts(engine, base, started)
        else:
            await self._start_listener(pipeline, base, started)
        self.metrics.serving(True)
        self._is_serving = True
        started.callback(self._stop_serving)
        self._watch_tenants(started)
        self.metrics.build(version=version("adapterd"), base=self.base.name, device=self.base.device)
        log.info("serving base=%s device=%s grpc_port=%d http_port=%d", *self._facts())

    async def _start_engine(self, base: Base, started: AsyncExitStack) -> LocalEngine:
        """Everything between the tokens and the device, the device's end first."""
        config, metrics = self.config, self.metrics
        bank = SlotBank(base.device, base.dtype)
        runner = Runner(base, bank, metrics)
        scheduling = await self._with_budget(runner, base)
        runner.start()
        started.push_async_callback(asyncio.to_thread, runner.stop)
        residency = Residency(bank, config.cache.device_bytes, metrics, self.tenants)
        self.scheduler = scheduler = Scheduler(
            scheduling,
            residency.acquire,
            runner.run,
            metrics,
            weight_of=lambda tenant: self.tenants.get(tenant).weight,
            on_pace=self.ledger.set_pace,
            on_batch=self.recent.batch,
            on_fault=self._break_off,
        )
        residency.on_room = scheduler.notify
        await scheduler.start()
        started.push_async_callback(scheduler.stop)
        is_cuda = base.device.type == "cuda"
        prober = await self._start_prober(base, scheduler, started)
        self.adapters = Adapters(
            config.cache,
            base.info,
            base.dtype,
            residency,
            metrics,
            weights=base,
            pin_memory=is_cuda,
            check=prober.check_adapter if prober else None,
            tenants=self.tenants,
            has_replicas=bool(config.api.replicas),
            shared=config.cache.adapters[0] if config.api.publish_folder else None,
        )
        await self.adapters.start()
        started.push_async_callback(self.adapters.stop)
        self.compositions = Compositions(self.adapters, config.cache, base.info)
        await self.compositions.start()
        canary = self._start_canary(base, residency, started)
        return LocalEngine(self.compositions, scheduler, metrics, base.info, self.tenants, canary)

    def _start_canary(self, base: Base, residency: Residency, started: AsyncExitStack) -> Canary | None:
        config = self.config.scheduler
        if not config.canary_share:
            return None
        tolerance = config.canary_tolerance or tolerance_of(_dtype_name(base))
        canary = Canary(self.scheduler, config.canary_share, tolerance, self.metrics, residency.doom)
        started.push_async_callback(canary.stop)
        return canary

    def _start_ledger(self, started: AsyncExitStack) -> Ledger:
        """Of this process, or of all its fronts and this one, which answers HTTP."""
        if not self.config.api.frontends:
            return Ledger.local()
        ledger = Ledger.create(self.config.api.frontends + 1, front=self.config.api.frontends)
        started.callback(ledger.close)
        return ledger

    async def _with_budget(self, runner: Runner, base: Base) -> SchedulerConfig:
        """The scheduler's configuration with the batch budget that was asked for, or a measured one."""
        config = self.config.scheduler
        if not config.max_batch_tokens:
            loop = asyncio.get_running_loop()
            found = await run_alone(calibrate_runner, runner, loop, config, base.info.max_tokens)
            config = replace(config, max_batch_tokens=found.budget_tokens)
            rates = " ".join(f"{tokens}:{rate:.0f}" for tokens, rate in found.rates.items())
            log.info("batch_tokens=%d seconds=%.1f tokens/s %s", config.max_batch_tokens, found.seconds, rates)
        self.metrics.batch_budget(config.max_batch_tokens)
        return config

    async def _start_prober(self, base: Base, scheduler: Scheduler, started: AsyncExitStack) -> Prober | None:
        """What proves adapters at load, if that is asked for: it holds a second, plain copy of the base."""
        config = self.config
        if not config.cache.verify_at_load:
            return None
        plain = await run_alone(load_plain, config.model)
        plain.start()
        started.push_async_callback(asyncio.to_thread, plain.stop)
        tolerance = config.cache.verify_tolerance or tolerance_of(_dtype_name(base))
        return Prober(scheduler, plain, tolerance)

    async def _start_pipeline(self, engine: Engine, base: Base, started: AsyncExitStack) -> Pipeline:
        """What stands between callers and the engine, in this process."""
        threads = self.config.api.num_tokenizer_threads
        tokenizer = await asyncio.to_thread(Tokenizer, base.tokenizer_path, base.info, threads)
        started.callback(tokenizer.close)
        pipeline = Pipeline(self.admission, tokenizer, engine, self.metrics)
        tracing = tracing_of(self.config.api)
        if tracing is not None:
            started.push_async_callback(asyncio.to_thread, tracing.close)
        self.answering = Answering(pipeline, self.config.api, self.metrics, self.recent, tracing)
        return pipeline

    async def _start_http(self, pipeline: Pipeline, started: AsyncExitStack) -> None:
        api, engine = self.config.api, pipeline.engine
        info = pipeline.tokenizer.base
        limits = Limits(api.max_inputs_per_request, info.max_tokens)
        parts = Parts(
            engine=engine,
            answering=self.answering,
            protocol=OipServicer(
                engine,
                self.answering,
                info,
                limits,
                lambda: self.is_serving,
                self.gate.caller,
                self.audit,
            ),
            bridge=Bridge(asyncio.get_running_loop()),
            gate=self.gate,
            limits=limits,
            state=State(self.metrics, self.totals, self.tenants, self.ledger, self.recent, time.time()),
            registry=self.totals.registry,
            base=self.base,
            version=version("adapterd"),
        )
        server = HttpServer(make_app(parts, api), api)
        started.push_async_callback(server.stop)
        self.http_port = await server.start()

    async def _start_listener(self, pipeline: Pipeline, base: Base, started: AsyncExitStack) -> None:
        api, more = self.config.api, self._more(self.config, base)
        listener = Listener(pipeline, api, self.base, self.metrics, self.gate, self.answering, more)
        self.grpc_port = await listener.start(api.port)
        started.push_async_callback(listener.drain)
        self._set_serving = listener.set_serving

    async def _start_fronts(self, engine: Engine, base: Base, started: AsyncExitStack) -> None:
        """What talks gRPC, in processes of their own."""
        tokenizer = await asyncio.to_thread(serialized, base.tokenizer_path)
        api, shared = self.config.api, (self.metrics, self.totals, self.ledger, self.tenants, self.recent)
        self.fronts = Supervisor(api, engine, *shared)
        self.grpc_port = await self.fronts.start(self.base, base.info, tokenizer, log.getEffectiveLevel())
        started.push_async_callback(self._drain_fronts)
        self._set_serving = self.fronts.set_serving

    def _warn(self) -> None:
        api = self.config.api
        for name, host in (("host", api.host), ("http_host", api.http_host)):
            if is_loopback(host):
                continue
            if not api.tls_certificate:
                log.warning(
                    "%s %s is not loopback and TLS is off: tokens, texts and answers can be read on the way", name, host
                )
            if self.tenants.are_open:
                log.warning(
                    "anyone who reaches %s %s may load, replace and unload adapters (allow_anonymous)", name, host
                )

    def _watch_tenants(self, started: AsyncExitStack) -> None:
        if self.config.api.tenants:
            self._tenants_file.start()
            started.push_async_callback(self._tenants_file.stop)

    async def _reload_tenants(self) -> None:
        """A file that cannot be read leaves those before."""
        try:
            self.tenants.replace(await asyncio.to_thread(read_tenants, Path(self.config.api.tenants)))
        except InvalidInput as error:
            log.error("the tenants before stay: %s", error.message)
            self.metrics.reloaded("tenants", has_failed=True)
            self.audit.reloaded("tenants", error.message)
            return
        self.adapters.tenants_changed()
        self.metrics.tenants_now([tenant.name for tenant in self.tenants.all])
        if self.config.api.frontends:
            self.fronts.tenants_changed()
        log.info("tenants were read again: %d", len(self.tenants.all))
        self.metrics.reloaded("tenants", has_failed=False)
        self.audit.reloaded("tenants", "OK")

    def _break_off(self, fault: DeviceFault) -> None:
        """Balancers are told at once. What was in the air has its answer: Unavailable."""
        log.critical("%s", fault.message)
        self.metrics.device_fault()
        self.metrics.serving(False)
        self._set_serving(False)
        self.admission.close()
        self.failed.set()

    async def _drain_fronts(self) -> None:
        """And what HTTP has in hand, at the same time."""
        await asyncio.gather(self.fronts.stop(), self.admission.drain(self.config.api.drain_timeout_s))

    def _stop_serving(self) -> None:
        self._is_serving = False
        self.metrics.serving(False)

    def _facts(self) -> tuple[str, str, int, int]:
        return self.base.name, self.base.device, self.grpc_port, self.http_port


def _describe(base: Base) -> adapters_pb2.Base:
    info = base.info
    return adapters_pb2.Base(
        name=info.name,
        model_type=info.model_type,
        hidden_size=info.hidden_size,
        num_layers=info.num_layers,
        fingerprint=info.fingerprint,
        device=str(base.device),
        dtype=_dtype_name(base),
        max_tokens_per_input=info.max_tokens,
    )


def _dtype_name(base: Base) -> str:
    return str(base.dtype).removeprefix("torch.")
