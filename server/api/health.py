"""Stage 0, health: the standard grpc.health.v1 service.

Our own, because the packaged one forgets the other watchers of a service when one of them leaves, and they
would never learn that the server drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2

from server.api.handlers import Context
from server.core import Tenant

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer:
    """One status for the server and all its services."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._is_serving = False
        self._changed = asyncio.Event()

    @property
    def is_serving(self) -> bool:
        return self._is_serving

    def set_serving(self, is_serving: bool) -> None:
        self._is_serving = is_serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, message: health_pb2.HealthCheckRequest, context: Context, tenant: Tenant
    ) -> health_pb2.HealthCheckResponse:
        if message.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service of this name")
        return health_pb2.HealthCheckResponse(status=SERVING if self._is_serving else NOT_SERVING)

    async def Watch(self, message: health_pb2.HealthCheckRequest, context: Context, tenant: Tenant) -> None:
        while True:
            changed = self._changed
            await context.write(health_pb2.HealthCheckResponse(status=self._status(message.service)))
            await changed.wait()

    async def List(
        self, message: health_pb2.HealthListRequest, context: Context, tenant: Tenant
    ) -> health_pb2.HealthListResponse:
        """Of the services that are served; the stubs of newer releases know this method, and only they."""
        statuses = {service: health_pb2.HealthCheckResponse(status=self._status(service)) for service in self._services}
        return health_pb2.HealthListResponse(statuses=statuses)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return SERVICE_UNKNOWN
        return SERVING if self._is_serving else NOT_SERVING
