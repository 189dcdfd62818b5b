"""Stage 0, Replicas: where the other servers are."""

from __future__ import annotations

from adapterd.v1 import replicas_pb2 as v1
from server.api.handlers import Context
from server.core import Tenant
from server.replicas import Replicas


class ReplicasServicer:
    """The RPCs of `adapterd.v1.Replicas`, named as in the proto."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def List(self, message: v1.ListReplicasRequest, context: Context, tenant: Tenant) -> v1.ListReplicasResponse:
        return v1.ListReplicasResponse(addresses=self._replicas.addresses, own=self._replicas.own)
