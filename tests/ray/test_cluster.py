"""`adapterd cluster --on ray`: a real Ray on this machine, whose processes are killed while callers ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from adapterd import AsyncClient, Client
from loadtest.ray import FAULTS, TOKENS, Cluster, row_of, started

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
        assert {address for process in processes for address in listening(process)} <= LOOPBACK
    assert len(processes) > 6  # Ray's own, two workers and their servers
    gone, alive = psutil.wait_procs(processes, GONE_S)
    assert [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert set(Path(tempfile.gettempdir()).glob(FOLDERS)) <= before


def listening(process: psutil.Process) -> Iterator[str]:
    """Addresses at which it does."""
    with suppress(psutil.NoSuchProcess):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.ip


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


@pytest.mark.parametrize("fault", ["server killed", "Ray worker killed", "members actor killed"])
async def test_no_call_is_lost_and_all_is_as_before_after(fault: str, running: Running) -> None:
    cluster, names = running
    servers = {process.pid for process in cluster.processes("server.ray.guard")}
    row = await row_of(fault, cluster, names, calm_s=1.0)
    assert row.num_failed == 0 and row.num_answered > 0
    addresses = cluster.addresses  # those that there are now
    assert len(addresses) == len(servers)
    found = homes(cluster.server, names)
    assert {len(replicas) for replicas in found.values()} == {1}
    assert set().union(*found.values()) == set(addresses)
    now = {process.pid for process in cluster.processes("server.ray.guard")}
    assert len(now) == len(addresses) and len(now & servers) == len(addresses) - FAULTS[fault][1]
