"""Three servers in processes of their own, and a client that keeps each adapter with one of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from make_adapters import make_adapter

from adapterd import AsyncClient, Client, Error
from loadtest.children import Served, served
from server.core import BaseInfo

NAMES = [f"a{number:02}" for number in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base_info: BaseInfo) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        make_adapter(folder / name, base_info, config="seq_bn[reduction_factor=4]", head=None, seed=seed)
    return folder


@pytest.fixture
def three(tmp_path: Path, base_path: Path, folder: Path) -> Iterator[list[Served]]:
    """Each knows of all, by a file."""
    listed = tmp_path / "replicas"
    options = ["--base", str(base_path), "--adapters", str(folder), "--batch-tokens", "1024"]
    options += ["--set", f"api.replicas=file:{listed}", "--set", "api.advertise=127.0.0.1", "--set", "api.reload_s=0.1"]
    options += ["--set", "model.num_threads=1", "--set", "api.lame_duck_s=2.5"]
    with ExitStack() as running:
        with ThreadPoolExecutor() as pool:
            servers = list(pool.map(lambda _: running.enter_context(served(*options)), range(3)))
        listed.write_text("\n".join(server.address for server in servers))
        yield servers


class Load:
    """Calls without pause; an answer is expected to each."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.homes: dict[str, set[str]] = defaultdict(set)
        self.failures: list[Error] = []
        self.num_answered = 0

    async def ask(self, name: str) -> None:
        try:
            response = await self._client.predict(name, "a few words", timeout=20)
        except Error as error:
            self.failures.append(error)
            return
        self.num_answered += 1
        self.homes[name].add(response.replica)

    async def run(self, number: int) -> None:
        while True:
            for name in NAMES[number::4]:
                await self.ask(name)

    async def settled(self) -> dict[str, set[str]]:
        """Where adapters are answered from now on."""
        self.homes.clear()
        await asyncio.sleep(0.3)
        self.homes.clear()
        await asyncio.sleep(0.7)
        return {name: set(homes) for name, homes in self.homes.items()}


@pytest.fixture
async def load(three: list[Served]) -> AsyncIterator[Load]:
    await asyncio.sleep(0.3)  # until each has read the list
    async with AsyncClient(f"cluster:{three[0].address}") as client:
        load = Load(client)
        tasks = [asyncio.create_task(load.run(number)) for number in range(4)]
        await asyncio.sleep(1)
        yield load
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_servers_that_go_under_load_cost_no_answer(three: list[Served], load: Load) -> None:
    """One is killed, then one is stopped; the last one has all that is left."""
    left = {server.address for server in three}
    homes = await load.settled()
    for server, how in ((three[1], signal.SIGKILL), (three[0], signal.SIGTERM)):
        assert {len(found) for found in homes.values()} == {1} and set(homes) == set(NAMES)
        assert set().union(*homes.values()) == left
        left.discard(server.address)
        os.kill(server.pid, how)
        await asyncio.sleep(1.0)  # one that is stopped takes calls for longer than this and the look, and gets none
        after = await load.settled()
        assert [str(failure) for failure in load.failures] == [] and load.num_answered > 100
        assert {name: after[name] for name, found in homes.items() if found != {server.address}} == {
            name: found for name, found in homes.items() if found != {server.address}
        }
        assert server.address not in set().union(*after.values())
        homes = after
    with Client(f"cluster:{three[0].address},{three[2].address}") as client:
        assert {(await asyncio.to_thread(client.predict, name, "words")).replica for name in NAMES} == left
