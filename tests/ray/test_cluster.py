"""`adapterd cluster --on ray`: a real Ray on this machine, whose processes are killed while callers ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import grpc
import psutil
import pytest

from adapterd import AsyncClient, Client
from loadtest.ray import FAULTS, REPLICA, TARGETS, TOKENS, Cluster, row_of, started
from server.cli.cluster import LOOPBACK_ONLY

pytestmark = pytest.mark.timeout(400)  # the first test has Ray, Serve and two servers start
Running = tuple[Cluster, tuple[str, ...]]
GONE_S = 10.0
FOLDERS = "adapterd-replica-*"
LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Two replicas and forty adapters; afterwards no process of all that is left, and no folder of a replica."""
    before = set(Path(tempfile.gettempdir()).glob(FOLDERS))
    with started("--frontends", "1") as (cluster, names):
        yield cluster, names
        processes = cluster.processes()
    assert len(processes) > 6  # Ray's own, two workers and their servers
    gone, alive = psutil.wait_procs(processes, GONE_S)
    assert [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert set(Path(tempfile.gettempdir()).glob(FOLDERS)) <= before


def listening(process: psutil.Process) -> Iterator[tuple[str, int]]:
    """Addresses at which it does."""
    with suppress(psutil.NoSuchProcess):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.ip, connection.laddr.port


def homes(server: str, names: Sequence[str]) -> dict[str, set[str]]:
    """The replicas that answered for each adapter."""
    found: dict[str, set[str]] = {name: set() for name in names}
    with Client(server) as client:
        for name in [*names] * 3:
            found[name].add(client.predict(name, tokens=TOKENS).replica)
    return found


async def test_an_adapters_requests_are_answered_by_one_replica_whoever_asks(running: Running) -> None:
    cluster, names = running
    found = homes(cluster.server, names)
    async with AsyncClient(cluster.server) as client:
        for name in names:
            found[name].add((await client.predict(name, tokens=TOKENS)).replica)
    assert {len(replicas) for replicas in found.values()} == {1}
    assert set().union(*found.values()) == {*cluster.addresses}


def test_a_ray_of_ones_own_is_reached_from_its_machine_only_or_with_its_token(running: Running) -> None:
    cluster, _ = running
    replicas = cluster.processes(REPLICA)
    for process in cluster.processes():
        for host, port in listening(process):
            if host not in LOOPBACK:
                assert process in replicas  # Serve has each of them listen everywhere, and says nowhere where
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                    with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                        call(b"", timeout=GONE_S)


def test_prometheus_finds_every_server(running: Running) -> None:
    cluster, _ = running
    [group] = json.loads((cluster.folder / TARGETS).read_text())
    assert len(group["targets"]) == len(cluster.addresses)
    for target in group["targets"]:
        with urlopen(f"http://{target}/metrics", timeout=GONE_S) as reply:
            assert b"adapterd_" in reply.read()


def test_what_runs_is_neither_replaced_nor_taken_down_by_another_command(running: Running) -> None:
    cluster, _ = running
    [(host, port)] = listening(cluster.processes("gcs_server")[0])
    environment = os.environ | {"HOME": str(cluster.folder), "RAY_AUTH_MODE": "token", LOOPBACK_ONLY: "0"}
    command = [sys.executable, "-m", "server", "cluster", "--address", f"{host.rpartition(':')[2]}:{port}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "an application runs there already: --detach updates it" in done.stderr
    with Client(cluster.server) as client:
        client.wait_ready()


@pytest.mark.parametrize("fault", ["server killed", "Ray worker killed", "members actor killed"])
async def test_no_call_is_lost_and_all_is_as_before_after(fault: str, running: Running) -> None:
    cluster, names = running
    servers = {process.pid for process in cluster.processes("server.ray.guard")}
    row = await row_of(fault, cluster, names, calm_s=1.0)
    assert not row.failures and row.num_answered > 0
    addresses = cluster.addresses  # those that there are now
    assert len(addresses) == len(servers)
    found = homes(cluster.server, names)
    assert {len(replicas) for replicas in found.values()} == {1}
    assert set().union(*found.values()) == set(addresses)
    now = {process.pid for process in cluster.processes("server.ray.guard")}
    assert len(now) == len(addresses) and len(now & servers) == len(addresses) - FAULTS[fault][1]
