"""A front process: it takes and answers calls, and asks the engine process for what lies between.

It ends when the engine process does, whatever the reason, and leaves signals to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from dataclasses import dataclass

from adapterd.v1 import adapters_pb2
from server.admission import Admission
from server.api.answering import Answering
from server.api.gate import Gate
from server.api.listener import Listener
from server.audit import Audit
from server.config import ApiConfig
from server.core import BaseInfo, Tenant
from server.fronts.peer import Handler, Peer
from server.fronts.remote import RemoteEngine
from server.ledger import Ledger
from server.metrics import Metrics
from server.pipeline import Pipeline
from server.recent import Recent
from server.tenants import Tenants
from server.tokenizer import Tokenizer
from server.totals import Snapshot, snapshot
from server.tracing import Tracing, tracing_of

PUSH_S = 1.0  # how old what a scrape shows of this process may be


@dataclass(frozen=True, slots=True)
class Setup:
    """What a front is told when it starts.

    base, info     as the Adapters service tells of it, and as requests are checked against it
    tokenizer      see `server.tokenizer.serialized`
    ledger_fd      see `Ledger`; the process inherits it
    tenants        of now; others are told as they come
    """

    number: int
    api: ApiConfig
    port: int
    base: adapters_pb2.Base
    info: BaseInfo
    tokenizer: str | None
    ledger_fd: int
    tenants: tuple[Tenant, ...]
    log_level: int = logging.INFO


class Front:
    """`start` and `drain` are called by the engine process."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.tenants = Tenants()
        self.recent = Recent()
        handlers: dict[str, Handler] = {
            "start": self.start,
            "drain": self.drain,
            "set_tenants": self.set_tenants,
            "set_serving": self.set_serving,
        }
        self.peer = Peer(handlers, on_closed=self._leave)
        self._listener: Listener | None = None
        self._tracing: Tracing | None = None
        self._is_drained = False

    async def start(self, setup: Setup) -> None:
        """Returns when calls are taken. Raises InvalidInput if the port cannot be had."""
        logging.getLogger().setLevel(setup.log_level)
        api = setup.api
        self.tenants.replace(setup.tenants)
        ledger = Ledger.open(setup.ledger_fd, api.frontends + 1, setup.number)
        admission = Admission(api, self.metrics, setup.info, self.tenants, ledger)
        tokenizer = await asyncio.to_thread(Tokenizer, setup.tokenizer, setup.info, api.num_tokenizer_threads)
        pipeline = Pipeline(admission, tokenizer, RemoteEngine(self.peer, setup.info, self.tenants), self.metrics)
        gate = Gate(self.tenants, Audit(api.audit_log), self.metrics)
        self._tracing = tracing_of(api)
        answering = Answering(pipeline, api, self.metrics, self.recent, self._tracing)
        self._listener = Listener(pipeline, api, setup.base, self.metrics, gate, answering)
        await self._listener.start(setup.port, shared=True)
        self._push()

    async def set_tenants(self, tenants: tuple[Tenant, ...]) -> None:
        self.tenants.replace(tenants)
        self.metrics.tenants_now([tenant.name for tenant in tenants])

    async def set_serving(self, is_serving: bool) -> None:
        if self._listener is not None:
            self._listener.set_serving(is_serving)

    async def drain(self) -> tuple[int, Snapshot]:
        """Answer what was accepted; gives how many were not, and everything this process counted."""
        assert self._listener is not None, "drain follows start"
        num_unanswered = await self._listener.drain()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._is_drained = True
        return num_unanswered, snapshot(self.metrics)

    def _push(self) -> None:
        """Tell what was counted. Pushed and not asked for, so that a scrape waits for no process."""
        self.peer.tell("counted", snapshot(self.metrics))
        if notes := self.recent.take_errors():
            self.peer.tell("failed", notes)
        asyncio.get_running_loop().call_later(PUSH_S, self._push)

    def _leave(self) -> None:
        """At once: nobody could be answered any more, and a busy thread must not keep the process."""
        os._exit(0 if self._is_drained else 1)


async def run(fd: int) -> None:
    """fd   this end of the socket pair"""
    front = Front()
    await front.peer.open(socket.socket(fileno=fd))
    await asyncio.get_running_loop().create_future()  # until `_leave`


def main(fd: int) -> None:
    import uvloop

    for number in (signal.SIGINT, signal.SIGTERM):  # whoever signals the whole group means the engine process
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s front %(process)d: %(message)s")
    uvloop.run(run(fd))
