"""A device that stops answering: a real server tells everybody at once and becomes a new process of the same id."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adapterd import AsyncClient, Error
from server.fronts.port import reserve

PROGRAM = Path(__file__).parent / "faulty_server.py"
ROOT = Path(__file__).parents[2]


class Served:
    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path, fault: Path) -> None:
        self.process, self.port, self.log, self.fault = process, port, log, fault

    def num_starts(self) -> int:
        return len(re.findall(r"grpc_port=\d+", self.log.read_text()))

    async def started(self, num: int) -> None:
        async with asyncio.timeout(60):
            while self.num_starts() < num:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(base_path: Path, adapters_path: Path, tmp_path: Path, frontends: int) -> AsyncIterator[Served]:
    with reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
    command = [sys.executable, str(PROGRAM), "serve", "--base", str(base_path), "--adapters", str(adapters_path)]
    command += ["--port", str(port), "--http-port", "0", "--batch-tokens", "1024", "--frontends", str(frontends)]
    fault, log = tmp_path / "fault", tmp_path / "log"
    environment = os.environ | {"FAULT": str(fault), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with log.open("wb") as file, subprocess.Popen(command, stderr=file, env=environment, cwd=ROOT) as process:
        served = Served(process, port, log, fault)
        try:
            await served.started(1)
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.mark.parametrize("frontends", [0, 2])
async def test_callers_hear_at_once_and_the_same_process_serves_again(
    base_path: Path, adapters_path: Path, tmp_path: Path, frontends: int
) -> None:
    async with serving(base_path, adapters_path, tmp_path, frontends) as served:
        address, pid = f"127.0.0.1:{served.port}", served.process.pid
        async with AsyncClient(address, max_retries=0) as client, grpc.aio.insecure_channel(address) as channel:
            before = (await client.predict("intent", "hello")).digest
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            served.fault.touch()
            began = time.monotonic()
            with pytest.raises(Error) as caught:
                await client.predict("intent", "hello")
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_FAULT")
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert time.monotonic() - began < 1.0
        await served.started(2)
        async with AsyncClient(address) as client:
            await client.wait_ready(30)
            assert (await client.predict("intent", "hello")).digest == before
        assert served.process.poll() is None and served.process.pid == pid
    assert served.process.returncode == 0
    assert "fault 1 in a row" in served.log.read_text()
