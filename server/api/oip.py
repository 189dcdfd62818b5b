"""Stage 0, the Open Inference Protocol: `inference.GRPCInferenceService` for clients of Triton, KServe and others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from importlib.metadata import version

import grpc

from adapterd.oip.v2 import inference_pb2 as v2
from adapterd.v1 import inference_pb2 as v1
from server.api.answering import Answering, Asked
from server.api.convert import to_expression, to_name, to_version
from server.api.handlers import Caller, Context, refusing_handler
from server.api.servicer import check_route, deadline_of, route_of
from server.api.stream import answer_stream
from server.audit import Audit
from server.core import BASE, AdapterStatus, BaseInfo, Tenant, Wanted
from server.engine import Answerer, Engine
from server.errors import AdapterdError, AdapterNotFound, InvalidInput
from server.oip import tensors
from server.oip.answers import to_tensors
from server.oip.models import PLATFORM, TensorSpec, inputs_of, specs_of
from server.oip.requests import Value, timeout_s, to_predict
from server.oip.tensors import BYTES, Limits, Tensor
from server.tracing import parent_of
from server.usage import Usage

SERVICE = v2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
PUBLIC_NAME = "inference.GRPCInferenceService"
OPEN_METHODS = ("ServerLive", "ServerReady")  # probes have no credentials
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "schedule_policy", "statistics")
OUTPUT_PARAMETERS = ("binary_data", "binary_data_size")
PAGE = 1000
NS = 1_000_000_000
ALL_VERSIONS = "1"  # of statistics, which are of all that answer for a name; perf_analyzer reads it as a number
DATA_TYPES = {BYTES: v2.TYPE_STRING, "INT64": v2.TYPE_INT64, "FP32": v2.TYPE_FP32}
SHARED_MEMORY = "tensors travel in the messages; shared memory is not offered"
NOT_OFFERED: Mapping[str, str] = {
    **{
        f"{kind}SharedMemory{what}": SHARED_MEMORY
        for kind in ("System", "Cuda")
        for what in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "tracing is set when the server starts: --set api.trace",
    "LogSettings": "logging is set when the server starts",
}


def refusing() -> grpc.GenericRpcHandler:
    """What the protocol's clients may ask for and do not get here."""
    return refusing_handler(PUBLIC_NAME, NOT_OFFERED)


class OipServicer:
    """The RPCs of the protocol, named as in the proto. A model is an adapter or a composition, its version a digest."""

    def __init__(
        self,
        engine: Engine,
        answering: Answering,
        base: BaseInfo,
        limits: Limits,
        is_serving: Callable[[], bool],
        caller: Caller,
        audit: Audit,
    ) -> None:
        self.limits = limits
        self._engine = engine
        self._answering = answering
        self._base = base
        self.is_serving = is_serving
        self._caller = caller
        self._audit = audit

    async def ServerLive(
        self, message: v2.ServerLiveRequest, context: Context, tenant: Tenant
    ) -> v2.ServerLiveResponse:
        return v2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, message: v2.ServerReadyRequest, context: Context, tenant: Tenant
    ) -> v2.ServerReadyResponse:
        return v2.ServerReadyResponse(ready=self.is_serving())

    async def ServerMetadata(
        self, message: v2.ServerMetadataRequest, context: Context, tenant: Tenant
    ) -> v2.ServerMetadataResponse:
        return v2.ServerMetadataResponse(name=PLATFORM, version=version("adapterd"), extensions=EXTENSIONS)

    async def ModelReady(
        self, message: v2.ModelReadyRequest, context: Context, tenant: Tenant
    ) -> v2.ModelReadyResponse:
        return v2.ModelReadyResponse(ready=await self.is_ready(message.name, message.version, tenant))

    async def is_ready(self, name: str, version: str, tenant: Tenant) -> bool:
        """Whether it can be asked for, and nothing failed when it was read last. What is unknown is not ready."""
        to_version(version)
        try:
            await self._engine.check(name, tenant.name)
            if name == BASE or "(" in name:
                return True
            status = await self._engine.get(name, tenant.name)
        except (AdapterNotFound, InvalidInput):
            return False
        digests = _digests(status)
        return not status.error and (not version or any(digest.startswith(version) for digest in digests))

    async def ModelMetadata(
        self, message: v2.ModelMetadataRequest, context: object, tenant: Tenant
    ) -> v2.ModelMetadataResponse:
        answerer = await self._describe(message.name, message.version, tenant)
        return v2.ModelMetadataResponse(
            name=message.name,
            versions=await self._versions(message.name, answerer, tenant),
            platform=PLATFORM,
            inputs=[_metadata(spec) for spec in inputs_of(answerer.heads)],
            outputs=[_metadata(spec) for spec in specs_of(answerer.heads, self._base.hidden_size)],
        )

    async def ModelConfig(
        self, message: v2.ModelConfigRequest, context: object, tenant: Tenant
    ) -> v2.ModelConfigResponse:
        answerer = await self._describe(message.name, message.version, tenant)
        labels = [label for head in answerer.heads if head is not None for label in head.labels]
        facts = {"digest": answerer.digest, "base": self._base.name, "labels": ",".join(labels)}
        return v2.ModelConfigResponse(
            config=v2.ModelConfig(
                name=message.name,
                platform=PLATFORM,
                backend=PLATFORM,
                input=[
                    v2.ModelInput(
                        name=spec.name,
                        data_type=DATA_TYPES[spec.datatype],
                        dims=spec.shape,
                        optional=spec.is_optional,
                    )
                    for spec in inputs_of(answerer.heads)
                ],
                output=[
                    v2.ModelOutput(name=spec.name, data_type=DATA_TYPES[spec.datatype], dims=spec.shape)
                    for spec in specs_of(answerer.heads, self._base.hidden_size)
                ],
                parameters={key: v2.ModelParameter(string_value=value) for key, value in facts.items() if value},
            )
        )

    async def ModelInfer(
        self, message: v2.ModelInferRequest, context: Context, tenant: Tenant
    ) -> v2.ModelInferResponse:
        check_route(route_of(context, message.model_name), message.model_name)
        parent = parent_of(context.invocation_metadata())
        return await self._infer("ModelInfer", message, deadline_of(context), tenant, parent)

    async def ModelStreamInfer(
        self, messages: AsyncIterator[v2.ModelInferRequest], context: Context, tenant: Tenant
    ) -> None:
        deadline, parent = deadline_of(context), parent_of(context.invocation_metadata())

        async def answer(message: v2.ModelInferRequest) -> v2.ModelStreamInferResponse:
            try:  # a stream may outlive the right to send on it
                response = await self._infer("ModelStreamInfer", message, deadline, self._caller(context), parent)
            except AdapterdError as error:
                failed = v2.ModelInferResponse(model_name=message.model_name, id=message.id)
                return v2.ModelStreamInferResponse(error_message=error.message, infer_response=failed)
            if "triton_enable_empty_final_response" in message.parameters:
                response.parameters["triton_final_response"].bool_param = True  # each request has one response
            return v2.ModelStreamInferResponse(infer_response=response)

        await answer_stream(messages, answer, context.write)

    async def ModelStatistics(
        self, message: v2.ModelStatisticsRequest, context: object, tenant: Tenant
    ) -> v2.ModelStatisticsResponse:
        names = []
        if message.name:
            await self._engine.check(to_name(message.name), tenant.name)  # of expressions nothing is kept apart
            names = [message.name]
        usages = dict(await self._engine.usage(names, tenant.name))
        return v2.ModelStatisticsResponse(
            model_stats=[to_statistics(name, usages.get(name) or Usage()) for name in names or usages]
        )

    async def RepositoryIndex(
        self, message: v2.RepositoryIndexRequest, context: object, tenant: Tenant
    ) -> v2.RepositoryIndexResponse:
        models = []
        if tenant.may_use(BASE):
            models.append(_indexed(BASE, self._base.fingerprint, ""))
        async for status in self._all(tenant):
            if not (message.ready and status.error):
                models += [_indexed(status.name, digest, status.error) for digest in _digests(status) or [""]]
        return v2.RepositoryIndexResponse(models=models)

    async def RepositoryModelLoad(
        self, message: v2.RepositoryModelLoadRequest, context: object, tenant: Tenant
    ) -> v2.RepositoryModelLoadResponse:
        if message.parameters:
            raise InvalidInput(
                f"load parameters ({', '.join(sorted(message.parameters)[:4])}) are not taken: an adapter's files come"
                " from its origin, or by Adapters.Publish"
            )
        with self._audit.action(tenant, "Load", message.model_name):
            await self._engine.load(_movable(message.model_name), tenant.name)
        return v2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, message: v2.RepositoryModelUnloadRequest, context: object, tenant: Tenant
    ) -> v2.RepositoryModelUnloadResponse:
        with self._audit.action(tenant, "Unload", message.model_name):
            await self._engine.unload(_movable(message.model_name), tenant.name)
        return v2.RepositoryModelUnloadResponse()

    async def _infer(
        self, method: str, message: v2.ModelInferRequest, deadline: float | None, tenant: Tenant, parent: str
    ) -> v2.ModelInferResponse:
        outputs = [output.name for output in message.outputs]

        def read() -> Asked:
            parameters = {name: _value(name, parameter) for name, parameter in message.parameters.items()}
            _check_outputs(message)
            inputs = _tensors(message, self.limits)
            asked = to_predict(message.model_name, message.model_version, inputs, parameters, outputs)
            return Asked(asked, earlier(deadline, timeout_s(parameters)))

        def shape(response: v1.PredictResponse) -> v2.ModelInferResponse:
            answers = to_tensors(response, outputs)
            return v2.ModelInferResponse(
                model_name=message.model_name,
                model_version=response.digest,
                id=message.id,
                outputs=[
                    v2.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
                    for one in answers
                ],
                raw_output_contents=[tensors.raw(one) for one in answers],
            )

        return await self._answering.answer(method, message.model_name, read, tenant, parent, shape=shape)

    async def _describe(self, name: str, version: str, tenant: Tenant) -> Answerer:
        return await self._answering.describe(to_expression(name), to_version(version), tenant)

    async def _versions(self, name: str, answerer: Answerer, tenant: Tenant) -> list[str]:
        if name == BASE or "(" in name:
            return [answerer.digest]
        return _digests(await self._engine.get(name, tenant.name)) or [answerer.digest]

    async def _all(self, tenant: Tenant) -> AsyncIterator[AdapterStatus]:
        after = ""
        while True:
            page, _ = await self._engine.list(Wanted("", "", None, tenant), after=after, limit=PAGE)
            for status in page:
                yield status
            if len(page) < PAGE:
                return
            after = page[-1].name
            await asyncio.sleep(0)  # others may be waiting


def earlier(deadline: float | None, own_s: float | None) -> float | None:
    """The deadline of a call, or that of the request in it, which begins now."""
    if own_s is None:
        return deadline
    own = time.monotonic() + own_s
    return own if deadline is None else min(deadline, own)


def to_statistics(name: str, usage: Usage) -> v2.ModelStatistics:
    def total(seconds: float, count: int = usage.num_answered) -> v2.StatisticDuration:
        return v2.StatisticDuration(count=count, ns=round(seconds * NS))

    return v2.ModelStatistics(
        name=name,
        version=ALL_VERSIONS,
        last_inference=round(usage.last_at * 1000),
        inference_count=usage.num_inputs,
        execution_count=usage.num_answered,
        inference_stats=v2.InferStatistics(
            success=total(usage.answered_s),
            fail=total(usage.failed_s, usage.num_failed),
            queue=total(usage.queue_s),
            compute_input=total(usage.ready_s),
            compute_infer=total(usage.compute_s),
            compute_output=total(0.0),
        ),
    )


def _check_outputs(message: v2.ModelInferRequest) -> None:
    """Raises InvalidInput for what would be left out in silence."""
    for output in message.outputs:
        check_output(output.name, output.parameters)


def check_output(name: str, parameters: Iterable[str]) -> None:
    """Raises InvalidInput for a parameter of an output that is not offered."""
    for parameter in parameters:
        if parameter not in OUTPUT_PARAMETERS:
            raise InvalidInput(
                f"output {name[:64]!r}: parameter {parameter[:64]!r} is not offered; ask for labels or scores with the"
                " parameter top_k, and for no shared memory"
            )


def _tensors(message: v2.ModelInferRequest, limits: Limits) -> list[Tensor]:
    """Raises InvalidInput."""
    for tensor in message.inputs:
        if "shared_memory_region" in tensor.parameters:
            raise InvalidInput(f"input {tensor.name[:64]!r}: {SHARED_MEMORY}")
        limits.check(tensor.name, tensor.datatype, tensor.shape)
    if not message.raw_input_contents:
        return [tensors.from_contents(one.name, one.datatype, one.shape, one.contents) for one in message.inputs]
    if len(message.raw_input_contents) != len(message.inputs):
        raise InvalidInput(f"{len(message.inputs)} inputs have {len(message.raw_input_contents)} raw contents")
    if any(one.HasField("contents") for one in message.inputs):
        raise InvalidInput("an input has contents beside raw_input_contents; send one of them")
    return [
        tensors.from_raw(one.name, one.datatype, one.shape, data)
        for one, data in zip(message.inputs, message.raw_input_contents, strict=True)
    ]


def _value(name: str, parameter: v2.InferParameter) -> Value:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidInput(f"parameter {name[:64]!r} has no value")
    value: Value = getattr(parameter, kind)
    return value


def _digests(status: AdapterStatus) -> list[str]:
    """Those that answer, the one that the name points to first."""
    shares = [version.digest for version in status.versions if version.percent]
    return shares or ([status.manifest.digest] if status.manifest is not None else [])


def _indexed(name: str, digest: str, error: str) -> v2.RepositoryIndexResponse.ModelIndex:
    state = "UNAVAILABLE" if error else "READY"
    return v2.RepositoryIndexResponse.ModelIndex(name=name, version=digest, state=state, reason=error)


def _movable(name: str) -> str:
    if name == BASE:
        raise InvalidInput(f"{BASE!r} is the base model itself and always loaded")
    return to_name(name)


def _metadata(spec: TensorSpec) -> v2.ModelMetadataResponse.TensorMetadata:
    return v2.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
