"""Stage 0, Adapters: what is registered, where it is, and moving it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from adapterd.v1 import adapters_pb2 as v1
from server.api.convert import MAX_NAME_CHARS, to_name
from server.api.handlers import Context
from server.api.publish import Publisher
from server.audit import Audit
from server.core import BASE, AdapterStatus, Tenant, Tier, Wanted
from server.errors import InvalidInput
from server.primitives import Task

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_PREFETCHED = 1000
MAX_SHARES = 16

TASKS: dict[str, v1.Task] = {
    Task.EMBEDDING.value: v1.TASK_EMBEDDING,
    Task.CLASSIFICATION.value: v1.TASK_CLASSIFICATION,
    Task.MULTI_LABEL.value: v1.TASK_MULTI_LABEL,
    Task.REGRESSION.value: v1.TASK_REGRESSION,
    Task.TOKEN_CLASSIFICATION.value: v1.TASK_TOKEN_CLASSIFICATION,
    Task.QUESTION_ANSWERING.value: v1.TASK_QUESTION_ANSWERING,
    Task.MULTIPLE_CHOICE.value: v1.TASK_MULTIPLE_CHOICE,
    Task.FILL_MASK.value: v1.TASK_FILL_MASK,
    Task.CAUSAL_LM.value: v1.TASK_CAUSAL_LM,
    Task.DEPENDENCY_PARSING.value: v1.TASK_DEPENDENCY_PARSING,
}
TIERS: dict[Tier, v1.Tier] = {
    Tier.ORIGIN: v1.TIER_ORIGIN,
    Tier.DISK: v1.TIER_DISK,
    Tier.HOST: v1.TIER_HOST,
    Tier.DEVICE: v1.TIER_DEVICE,
}


class Adapters(Protocol):
    """The part of the engine that this file uses."""

    async def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> tuple[list[AdapterStatus], int]: ...
    async def get(self, name: str, tenant: str) -> AdapterStatus: ...
    async def load(self, name: str, tenant: str) -> tuple[AdapterStatus, str]: ...
    async def unload(self, name: str, tenant: str) -> tuple[int, int, int]: ...
    async def pin(self, name: str, is_pinned: bool, tenant: str) -> AdapterStatus: ...
    async def prefetch(self, names: Sequence[str], tenant: str) -> int: ...
    async def set_traffic(self, name: str, shares: Mapping[str, int], tenant: str) -> AdapterStatus: ...


class AdaptersServicer:
    """The RPCs of `adapterd.v1.Adapters`, named as in the proto."""

    def __init__(self, adapters: Adapters, base: v1.Base, publisher: Publisher, audit: Audit) -> None:
        self._adapters = adapters
        self._base = base
        self._publisher = publisher
        self._audit = audit

    async def List(self, message: v1.ListRequest, context: Context, tenant: Tenant) -> v1.ListResponse:
        if not 0 <= message.page_size <= MAX_PAGE_SIZE:
            raise InvalidInput(f"page_size {message.page_size} is not between 0 and {MAX_PAGE_SIZE}")
        limit = message.page_size or DEFAULT_PAGE_SIZE
        # One more than asked for tells whether a next page exists. A page token is the last name of its page.
        page, total = await self._adapters.list(_wanted(message, tenant), after=message.page_token, limit=limit + 1)
        return v1.ListResponse(
            adapters=[to_adapter(status) for status in page[:limit]],
            next_page_token=page[limit - 1].name if len(page) > limit else "",
            num_adapters=total,
            base=self._base,
        )

    async def Get(self, message: v1.GetRequest, context: Context, tenant: Tenant) -> v1.GetResponse:
        return v1.GetResponse(adapter=to_adapter(await self._adapters.get(_name(message.name), tenant.name)))

    async def Load(self, message: v1.LoadRequest, context: Context, tenant: Tenant) -> v1.LoadResponse:
        with self._audit.action(tenant, "Load", message.name):
            status, previous = await self._adapters.load(_name(message.name), tenant.name)
        return v1.LoadResponse(adapter=to_adapter(status), previous_digest=previous)

    async def Unload(self, message: v1.UnloadRequest, context: Context, tenant: Tenant) -> v1.UnloadResponse:
        with self._audit.action(tenant, "Unload", message.name):
            host_bytes, device_bytes, disk_bytes = await self._adapters.unload(_name(message.name), tenant.name)
        return v1.UnloadResponse(
            host_bytes_freed=host_bytes, device_bytes_freed=device_bytes, disk_bytes_freed=disk_bytes
        )

    async def Publish(
        self, messages: AsyncIterator[v1.PublishRequest], context: Context, tenant: Tenant
    ) -> v1.PublishResponse:
        status, previous = await self._publisher.publish(messages, tenant)
        return v1.PublishResponse(adapter=to_adapter(status), previous_digest=previous)

    async def Pin(self, message: v1.PinRequest, context: Context, tenant: Tenant) -> v1.PinResponse:
        with self._audit.action(tenant, "Pin" if message.is_pinned else "Unpin", message.name):
            status = await self._adapters.pin(_name(message.name), message.is_pinned, tenant.name)
        return v1.PinResponse(adapter=to_adapter(status))

    async def Prefetch(self, message: v1.PrefetchRequest, context: Context, tenant: Tenant) -> v1.PrefetchResponse:
        if len(message.names) > MAX_PREFETCHED:
            raise InvalidInput(f"{len(message.names)} names exceed the limit of {MAX_PREFETCHED} per call")
        names = [_name(name) for name in message.names]
        return v1.PrefetchResponse(num_begun=await self._adapters.prefetch(names, tenant.name))

    async def SetTraffic(
        self, message: v1.SetTrafficRequest, context: Context, tenant: Tenant
    ) -> v1.SetTrafficResponse:
        shares = {share.digest: share.percent for share in message.shares}
        if len(message.shares) > MAX_SHARES or any(len(digest) > MAX_NAME_CHARS for digest in shares):
            raise InvalidInput(f"{len(message.shares)} shares: {MAX_SHARES} are the limit, and a digest is 64 digits")
        if not shares or len(shares) != len(message.shares):
            raise InvalidInput("shares have to name at least one version, and each once")
        with self._audit.action(tenant, "SetTraffic", message.name, shares=shares):
            status = await self._adapters.set_traffic(_name(message.name), shares, tenant.name)
        return v1.SetTrafficResponse(adapter=to_adapter(status))


def _name(name: str) -> str:
    """Of an adapter that can be moved. Raises InvalidInput for the base, as for what is no name."""
    if name == BASE:
        raise InvalidInput(f"{BASE!r} is the base model itself and always loaded")
    return to_name(name)


def to_task(name: str) -> str:
    """By the name of the enum, TASK_CLASSIFICATION. Raises InvalidInput."""
    names = {v1.Task.Name(value): key for key, value in TASKS.items()}
    if name and name not in names:
        raise InvalidInput(f"task {name[:64]!r} is not one of {', '.join(names)}")
    return names.get(name, "")


def to_tier(name: str) -> Tier | None:
    """By the name of the enum, TIER_DEVICE. Raises InvalidInput."""
    names = {v1.Tier.Name(value): key for key, value in TIERS.items()}
    if name and name not in names:
        raise InvalidInput(f"tier {name[:64]!r} is not one of {', '.join(names)}")
    return names.get(name)


def _wanted(message: v1.ListRequest, tenant: Tenant) -> Wanted:
    """Raises InvalidInput for a task or tier that this server does not know."""
    tasks = {value: key for key, value in TASKS.items()}
    tiers = {value: key for key, value in TIERS.items()}
    if message.task and message.task not in tasks:
        raise InvalidInput(f"task {message.task} is not one that this server knows")
    if message.tier and message.tier not in tiers:
        raise InvalidInput(f"tier {message.tier} is not one that this server knows")
    return Wanted(message.name_prefix, tasks.get(message.task, ""), tiers.get(message.tier), tenant)


def to_adapter(status: AdapterStatus) -> v1.Adapter:
    message = v1.Adapter(
        name=status.name,
        task=TASKS.get(status.task, v1.TASK_UNSPECIFIED),
        labels=status.labels,
        host_bytes=status.host_bytes,
        device_bytes=status.device_bytes,
        tier=TIERS[status.tier],
        is_pinned=status.is_pinned,
        error=status.error,
        method=status.method,
        heads=status.heads,
        composition=status.composition,
        disk_bytes=status.disk_bytes,
        versions=[
            v1.Version(digest=version.digest, percent=version.percent, tier=TIERS[version.tier])
            for version in status.versions
        ],
    )
    if status.loaded_at is not None:
        message.loaded_at.FromNanoseconds(int(status.loaded_at * 1e9))
    if status.last_used_at is not None:
        message.last_used_at.FromNanoseconds(int(status.last_used_at * 1e9))
    if (manifest := status.manifest) is not None:
        message.digest = manifest.digest
        message.method = status.method or manifest.method
        message.model_type = manifest.model_type
        message.hidden_size = manifest.hidden_size
        message.num_parameters = manifest.num_parameters
    return message
