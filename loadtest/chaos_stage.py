"""What faults are made on: a server that is started again when it ends, and callers who count what becomes of calls."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapterd import AsyncClient, Error
from loadtest import faults
from loadtest.children import NO_MORE
from loadtest.deployment import publish
from loadtest.fleet.material import save_small_base
from server.config import ModelConfig
from server.model.base import load_base

NUM_ADAPTERS, NUM_CALLERS = 12, 6
TOKENS = [list(range(5, 21))]
CALM_S = 1.5  # before a fault, and without a failure until it is over
LIMIT_S = 60.0
LOAD_TIMEOUT_S = 1.0
TIMEOUT_S = 20.0  # of a call


@dataclass(frozen=True, slots=True)
class Material:
    folder: Path
    names: tuple[str, ...]


@contextmanager
def made() -> Iterator[Material]:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        save_small_base(folder / "base")
        base = load_base(ModelConfig(base=str(folder / "base"), dtype="float32"))
        yield Material(folder, tuple(path.name for path in publish(base, folder / "adapters", NUM_ADAPTERS)))


class Process:
    """A server on a port that stays the same, started again when it ends, until `stop`."""

    def __init__(
        self, material: Material, *options: str, module: str = "server", environment: Mapping[str, str] = NO_MORE
    ) -> None:
        self._environment = {**os.environ, **environment}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.faults = Path(tempfile.mkdtemp(dir=material.folder))
        self._command = [
            *(sys.executable, "-m", module, "serve", "--base", str(material.folder / "base"), "--dtype", "float32"),
            *("--adapters", str(material.folder / "adapters"), "--batch-tokens", "1024"),
            *("--port", str(self.port), "--http-port", "0", "--set", f"cache.load_timeout_s={LOAD_TIMEOUT_S}"),
            *options,
        ]
        self._keeper: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.is_kept = True

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def _spawn(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self._command, stderr=subprocess.DEVNULL, env=self._environment | {faults.VARIABLE: str(self.faults)}
        )

    async def _keep(self) -> None:
        while True:
            assert self.process is not None
            await self.process.wait()
            if not self.is_kept:
                return
            await self._spawn()

    async def stop(self) -> None:
        self.is_kept = False
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        if self._keeper is not None:
            await self._keeper


@dataclass(slots=True)
class Calls:
    """What became of calls, and when the last one failed."""

    num_answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    last_failure: float = 0.0
    is_over: bool = False

    def failed(self, error: Error) -> None:
        self.failures[f"{error.code.name} {error.reason}".strip()] += 1
        self.last_failure = time.monotonic()

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values())


async def _ask(connect: Callable[[], AsyncClient], names: Sequence[str], calls: Calls, every: int = 0) -> None:
    """Without pause, until `calls.is_over`.

    every   calls on one connection; 0: all
    """
    while not calls.is_over:
        async with connect() as client:
            number = 0
            while not calls.is_over and (number < every or not every):
                number += 1
                try:
                    await client.predict(names[number % len(names)], tokens=TOKENS, timeout=TIMEOUT_S)
                    calls.num_answered += 1
                except Error as error:
                    calls.failed(error)
                    await asyncio.sleep(0.02)


@asynccontextmanager
async def asking(
    server: Process, names: Sequence[str], connect: Callable[[], AsyncClient] | None = None, every: int = 0
) -> AsyncIterator[Calls]:
    calls = Calls()
    connect = connect or (lambda: client_of(server))
    tasks = [asyncio.create_task(_ask(connect, names, calls, every)) for _ in range(NUM_CALLERS)]
    try:
        await asyncio.sleep(CALM_S)
        assert not calls.failures, calls.failures
        yield calls
    finally:
        calls.is_over = True
        await asyncio.gather(*tasks)


def client_of(server: Process) -> AsyncClient:
    return AsyncClient(server.address, max_retries=0)


async def calm(calls: Calls, since: float) -> float:
    """Wait until no call has failed for a while; seconds from `since` to the last that did."""
    async with asyncio.timeout(LIMIT_S):
        while time.monotonic() - max(calls.last_failure, since) < CALM_S:
            await asyncio.sleep(0.05)
    return max(0.0, calls.last_failure - since)


@asynccontextmanager
async def running(
    material: Material, *options: str, module: str = "server", environment: Mapping[str, str] = NO_MORE
) -> AsyncIterator[Process]:
    server = Process(material, *options, module=module, environment=environment)
    await server.start()
    try:
        if "--tls-certificate" not in options:
            async with AsyncClient(server.address) as client:
                await client.wait_ready(LIMIT_S)
                for name in material.names:
                    await client.load(name)
        yield server
    finally:
        await server.stop()
