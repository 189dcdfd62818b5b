"""The front processes of one server: started together, replaced when they die, drained together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from adapterd.v1 import adapters_pb2
from server.config import ApiConfig
from server.core import BaseInfo
from server.engine import Engine
from server.errors import AdapterdError
from server.fronts.front import Setup
from server.fronts.port import reserve
from server.fronts.process import FrontProcess
from server.fronts.service import handlers_of
from server.ledger import Ledger
from server.metrics import Metrics
from server.recent import ErrorNote, Recent
from server.tenants import Tenants
from server.totals import Snapshot, Totals

MIN_LIFE_S = 1.0  # a front that lives shorter is not replaced before that time is over
STOP_MARGIN_S = 5.0  # beyond its drain, for a front to end

log = logging.getLogger("adapterd.fronts")


class Supervisor:
    """Owns the port and the processes. All on the event loop's thread."""

    def __init__(
        self,
        api: ApiConfig,
        engine: Engine,
        metrics: Metrics,
        totals: Totals,
        ledger: Ledger,
        tenants: Tenants,
        recent: Recent,
    ) -> None:
        self._recent = recent
        self._ledger = ledger
        self._tenants = tenants
        self._api = api
        self._handlers = handlers_of(engine)
        self._metrics = metrics
        self._totals = totals
        self._fronts: dict[int, FrontProcess] = {}  # those that take calls, by number
        self._keepers: dict[int, asyncio.Task[None]] = {}  # by number
        self._is_stopping = False
        self._held = AsyncExitStack()

    @property
    def pids(self) -> dict[int, int]:
        """Of the fronts that take calls, by number."""
        return {number: front.pid for number, front in self._fronts.items()}

    async def start(self, base: adapters_pb2.Base, info: BaseInfo, tokenizer: str | None, log_level: int) -> int:
        """Returns the port when every front takes calls. Raises InvalidInput if the port is taken.

        base, info, tokenizer   see `Setup`
        """
        api = self._api
        async with AsyncExitStack() as held:
            held_port = held.enter_context(reserve(api.host, api.port))
            port: int = held_port.getsockname()[1]
            setup = Setup(0, api, port, base, info, tokenizer, self._ledger.fd, self._tenants.all, log_level)
            held.push_async_callback(self._kill_all)
            await self._start_all(setup)
            self._held = held.pop_all()
        self._keepers = {
            number: asyncio.create_task(self._keep(replace(setup, number=number)), name=f"front {number}")
            for number in range(api.frontends)
        }
        return port

    def tenants_changed(self) -> None:
        """Have every front know those of now."""
        for front in self._fronts.values():
            front.tell("set_tenants", self._tenants.all)

    def set_serving(self, is_serving: bool) -> None:
        """What health checks are told."""
        for front in self._fronts.values():
            front.tell("set_serving", is_serving)

    async def stop(self) -> None:
        """Every front drains; then none is left."""
        self._is_stopping = True
        await _cancelled([keeper for number, keeper in self._keepers.items() if number not in self._fronts])
        drain_s = self._api.lame_duck_s + self._api.drain_timeout_s + STOP_MARGIN_S
        drains = [asyncio.create_task(self._drain(number)) for number in self._fronts]
        if drains:
            await asyncio.wait(drains, timeout=drain_s)
        await _cancelled([*drains, *self._keepers.values()])
        await self._held.aclose()

    async def _start_all(self, setup: Setup) -> None:
        """All or none."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._api.frontends):
                    group.create_task(self._start_one(replace(setup, number=number)))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _start_one(self, setup: Setup) -> None:
        number = setup.number

        async def counted(snapshot: Snapshot) -> None:
            if self._fronts.get(number) is front:  # what comes after its end has been added up already
                self._totals.put(number, snapshot)

        async def failed(notes: list[ErrorNote]) -> None:
            self._recent.add(notes)

        front = FrontProcess({**self._handlers, "counted": counted, "failed": failed})
        try:
            await front.start(replace(setup, tenants=self._tenants.all))
        except BaseException:
            self._ledger.forget(number)
            raise
        self._fronts[number] = front
        front.tell("set_tenants", self._tenants.all)  # they may have changed meanwhile
        log.info("front=%d pid=%d takes calls", number, front.pid)

    async def _keep(self, setup: Setup) -> None:
        """Replace the front of this number whenever it ends."""
        number = setup.number
        while True:
            started = time.monotonic()
            if number in self._fronts:
                code = await self._fronts[number].wait()
                if self._is_stopping:
                    return
                self._forget(number)
                log.error("front=%d ended with code %d and is replaced", number, code)
                self._metrics.front_restarted()
            await asyncio.sleep(max(0.0, started + MIN_LIFE_S - time.monotonic()))
            try:
                await self._start_one(setup)
            except (AdapterdError, OSError) as error:
                log.error("front=%d cannot start: %s", number, error)

    async def _drain(self, number: int) -> None:
        try:
            num_unanswered, snapshot = await self._fronts[number].drain()
        except AdapterdError as error:
            log.error("front=%d did not drain: %s", number, error.message)
            return
        self._totals.put(number, snapshot)
        log.info("front=%d stopped unanswered=%d", number, num_unanswered)

    def _forget(self, number: int) -> None:
        """What the front of this number had in hand is nobody's any more."""
        del self._fronts[number]
        self._ledger.forget(number)
        self._totals.retire(number)

    async def _kill_all(self) -> None:
        for front in self._fronts.values():
            await front.kill()


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Until all have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
