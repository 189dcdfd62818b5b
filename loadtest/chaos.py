"""Faults under load: what callers see of each, and how long it takes until nobody sees it any more."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.progress import Progress

from adapterd import AsyncClient, Error
from loadtest import faults
from loadtest.bench import machine
from loadtest.chaos_stage import (
    CALM_S,
    LIMIT_S,
    NUM_ADAPTERS,
    NUM_CALLERS,
    TIMEOUT_S,
    TOKENS,
    Calls,
    Material,
    asking,
    calm,
    client_of,
    made,
    running,
)
from loadtest.figures import Figure, at_most

FAKETIME = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")
NOTHING_LOST = "nothing is lost"
IN_THE_AIR = "what is in the air gets UNAVAILABLE"
OTHERS_GO_ON = "its own callers get an error in time, nobody else anything"

RULES = f"""\
A small BERT, {NUM_ADAPTERS} adapters and {NUM_CALLERS} callers without retries, each with a connection of its own, who
ask without pause. Recovered after: from the fault, or from its end where it has one, until the last failed call; 0
where no call failed. Processes that are killed are started again at once by a loop, as systemd or Kubernetes do. The
stalled disk is made inside of the server's process, and its clock is libfaketime's; all else is the real thing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """faults   names of those to make; empty: all"""

    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """failed: calls of those to whom the promise gives an answer. `seen`: codes of all that failed."""

    name: str
    promise: str
    recovered_s: float
    num_answered: int
    num_failed: int
    seen: str

    @property
    def is_kept(self) -> bool:
        return self.promise == IN_THE_AIR or not self.num_failed


@dataclass(frozen=True, slots=True)
class ChaosReport:
    machine: dict[str, str]
    command: str
    plan: Plan
    rows: list[Row]

    @property
    def figures(self) -> tuple[Figure, ...]:
        kept = [
            at_most(f"{row.name}: calls lost against the promise", 0 if row.is_kept else row.num_failed, 0)
            for row in self.rows
        ]
        return (*kept, at_most("longest recovery, s", max(row.recovered_s for row in self.rows), 30.0))


def run(plan: Plan, command: str) -> ChaosReport:
    names = plan.faults or tuple(FAULTS)
    if unknown := set(names) - FAULTS.keys():
        raise SystemExit(f"unknown faults {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    rows = []
    with made() as material, Progress(transient=True) as bar:
        task = bar.add_task("", total=len(names))
        for name in names:
            bar.update(task, description=name)
            rows.append(asyncio.run(_row(name, material)))
            bar.advance(task)
    return ChaosReport(machine("cpu", "float32"), command, plan, rows)


# faults

Result = tuple[str, float, Calls]


async def _engine_killed(material: Material) -> Result:
    async with running(material) as server, asking(server, material.names) as calls:
        began = time.monotonic()
        os.kill(server.pid, signal.SIGKILL)
        return IN_THE_AIR, await calm(calls, began), calls


async def _front_killed(material: Material) -> Result:
    async with running(material, "--frontends", "2") as server, asking(server, material.names) as calls:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        began = time.monotonic()
        os.kill(int(children[0]), signal.SIGKILL)
        return IN_THE_AIR, await calm(calls, began), calls


async def _disk_full(material: Material) -> Result:
    """Every adapter is replaced meanwhile, and would be written."""
    disk = Path(tempfile.mkdtemp(dir=material.folder))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        async with running(material, "--disk", str(disk)) as server, asking(server, material.names) as calls:
            with suppress(OSError), (disk / "filler").open("wb") as filler:
                while True:
                    filler.write(bytes(1 << 16))
                    filler.flush()
            async with AsyncClient(server.address) as client:
                for name in material.names:
                    await client.unload(name)  # from disk too
                    await client.load(name)
                began = time.monotonic()
                (disk / "filler").unlink()
                for name in material.names:
                    await client.unload(name)
                    await client.load(name)
                assert all([adapter.disk_bytes async for adapter in client.list()])
            return NOTHING_LOST, await calm(calls, began), calls
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def _disk_stalled(material: Material) -> Result:
    """The last adapter has left memory, and is read from a disk that does not answer."""
    *others, cold = material.names
    disk = Path(tempfile.mkdtemp(dir=material.folder))
    options = ("--disk", str(disk), "--set", "cache.idle_ttl_s=1")
    async with (
        running(material, *options, module="loadtest.faults") as server,
        asking(server, others) as calls,
        client_of(server) as client,
    ):
        await _cooled(client, cold)
        (server.faults / faults.STALL).touch()
        return await _own_callers_only(calls, client, cold, (server.faults / faults.STALL).unlink)


async def _origin_down(material: Material) -> Result:
    """The folder is away; the last adapter has left memory, and there is no disk tier."""
    *others, cold = material.names
    origin, aside = material.folder / "adapters", material.folder / "adapters.away"
    options = ("--set", "cache.idle_ttl_s=1", "--set", "cache.watch_s=0.5")
    async with (
        running(material, *options) as server,
        asking(server, others) as calls,
        client_of(server) as client,
    ):
        await _cooled(client, cold)
        origin.rename(aside)
        await asyncio.sleep(CALM_S)
        return await _own_callers_only(calls, client, cold, lambda: aside.rename(origin))


async def _cooled(client: AsyncClient, name: str) -> None:
    """Until an adapter that nobody asks for has left memory."""
    async with asyncio.timeout(LIMIT_S):
        while (await client.get(name)).host_bytes:
            await asyncio.sleep(0.1)


async def _own_callers_only(calls: Calls, client: AsyncClient, cold: str, mend: Callable[[], object]) -> Result:
    """What callers of the cold adapter are told; when it answers again after `mend`."""
    began = time.monotonic()
    try:
        await client.predict(cold, tokens=TOKENS, timeout=TIMEOUT_S)
        raise AssertionError("the cold adapter answered")
    except Error as error:
        told = f"{error.code.name} {error.reason} after {time.monotonic() - began:.1f} s, of the cold adapter"
    mend()
    began = time.monotonic()
    async with asyncio.timeout(LIMIT_S):
        while True:
            with suppress(Error):
                await client.predict(cold, tokens=TOKENS, timeout=TIMEOUT_S)
                break
            await asyncio.sleep(0.05)
    recovered = time.monotonic() - began
    await calm(calls, began)
    calls.failures[told] += 0
    return OTHERS_GO_ON, recovered, calls


async def _clock_jump(material: Material) -> Result:
    """A day ahead, and two back."""
    if not FAKETIME.exists():
        raise SystemExit(f"{FAKETIME.name} is not here; install Debian's package faketime")
    clock = Path(tempfile.mkdtemp(dir=material.folder)) / "clock"
    clock.write_text("+0\n")
    environment = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock)}
    environment["FAKETIME_CACHE_DURATION"] = "1"
    environment |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    async with (
        running(material, environment=environment) as server,
        asking(server, material.names) as calls,
    ):
        began = time.monotonic()
        for seconds in ("+86400", "-86400"):
            clock.write_text(f"{seconds}\n")
            await asyncio.sleep(1.0 + CALM_S)  # the file is read every second
        return NOTHING_LOST, await calm(calls, began), calls


async def _certificate_rotated(material: Material) -> Result:
    """Three times, beside callers who connect anew all the time; then a broken one."""
    import trustme  # of the extra dev

    ca, folder = trustme.CA(), Path(tempfile.mkdtemp(dir=material.folder))

    def issue() -> None:
        certificate = ca.issue_cert("localhost")
        for name, data in (("key", certificate.private_key_pem), ("chain", certificate.cert_chain_pems[0])):
            data.write_to_path(folder / "new")
            (folder / "new").replace(folder / f"{name}.pem")

    issue()
    files = ("--tls-certificate", str(folder / "chain.pem"), "--tls-key", str(folder / "key.pem"))
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    async with running(material, *files, "--set", "api.reload_s=0.2") as server:

        def connect() -> AsyncClient:
            return AsyncClient(server.address, credentials=credentials, max_retries=0)

        async with connect() as client:
            await client.wait_ready(LIMIT_S)
            for name in material.names:
                await client.load(name)
        async with asking(server, material.names, connect, every=5) as calls:
            began = time.monotonic()
            for _ in range(3):
                issue()
                await asyncio.sleep(0.5)
            (folder / "chain.pem").write_text("broken")
            await asyncio.sleep(0.5)
            return NOTHING_LOST, await calm(calls, began), calls


async def _terminated(material: Material) -> Result:
    """Callers watch its health and stop when it stops serving. Recovered: it has ended, with code 0."""
    async with running(material, "--set", "api.lame_duck_s=0.5") as server, AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(4)]
        for watch in watches:
            await watch.read()
        async with asking(server, material.names) as calls:
            server.is_kept = False
            began = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            told = [(await watch.read()).status for watch in watches]
            calls.is_over = True
            assert set(told) == {health_pb2.HealthCheckResponse.NOT_SERVING}
            assert server.process is not None
            code = await server.process.wait()
            assert code == 0, code
            return NOTHING_LOST, time.monotonic() - began, calls


FAULTS: dict[str, Callable[[Material], Awaitable[Result]]] = {
    "engine killed": _engine_killed,
    "front killed": _front_killed,
    "disk full": _disk_full,
    "disk stalled": _disk_stalled,
    "origin down": _origin_down,
    "clock jump": _clock_jump,
    "certificate rotated": _certificate_rotated,
    "SIGTERM": _terminated,
}


async def _row(name: str, material: Material) -> Row:
    promise, recovered_s, calls = await FAULTS[name](material)
    seen = ", ".join(f"{count} x {what}" if count else what for what, count in calls.failures.items()) or "nothing"
    return Row(name, promise, recovered_s, calls.num_answered, calls.num_failed, seen)
