"""A server process from start to SIGTERM."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adapterd import AsyncClient, Error, predict_request
from server.app import App
from server.config import ServerConfig
from server.core import HostLease
from server.errors import InvalidInput


@asynccontextmanager
async def server_process(base_path: Path, adapters_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    arguments = ["--base", str(base_path), "--device", "cpu", "--adapters", str(adapters_path)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "serve", "--port", "0", "--http-port", "0", *arguments),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if found := re.search(rb"grpc_port=(\d+)", line):
                yield process, int(found[1])
                break
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_sigterm_answers_what_was_accepted_and_exits_0(base_path: Path, adapters_path: Path) -> None:
    names = ("intent", "embed", "tags")
    async with (
        server_process(base_path, adapters_path) as (process, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        AsyncClient(f"127.0.0.1:{port}", max_retries=0) as client,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        items = ((str(i), predict_request(names[i % 3], ["x"] * 8)) for i in range(64))
        num_answered = 0
        async for _, outcome in client.predict_stream(items):
            assert not isinstance(outcome, Error), outcome
            num_answered += 1
            if num_answered == 1:
                process.send_signal(signal.SIGTERM)
        assert num_answered == 64
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await asyncio.wait_for(process.wait(), 20) == 0  # though the watcher never left


async def test_a_draining_server_answers_the_accepted_and_refuses_the_rest(config: ServerConfig) -> None:
    app = App(config)
    await app.start()
    reached, gate, ready = asyncio.Event(), asyncio.Event(), app.adapters.ready

    async def gated(name: str, key: str = "", version: str = "") -> HostLease:
        reached.set()
        await gate.wait()
        return await ready(name, key, version)

    app.adapters.ready = gated  # type: ignore[method-assign]
    async with AsyncClient(f"127.0.0.1:{app.grpc_port}", max_retries=0) as client:
        accepted = asyncio.create_task(client.predict("intent", "x"))
        await reached.wait()
        stop = asyncio.create_task(app.stop())
        while not app.admission.is_draining:
            await asyncio.sleep(0)
        with pytest.raises(Error) as caught:
            await client.predict("intent", "x")
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
        with pytest.raises(Error):
            await client.wait_ready()
        gate.set()
        assert (await accepted).results
        await stop


async def test_a_taken_port_is_an_error_that_names_it(app: App, config: ServerConfig) -> None:
    second = App(replace(config, api=replace(config.api, port=app.grpc_port)))
    with pytest.raises(InvalidInput, match=str(app.grpc_port)):
        await second.start()
