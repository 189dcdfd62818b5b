"""Replicas of one server with simulated devices, a client that routes by adapter, and one that does not."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterd import AsyncClient, Error, cluster
from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import write_checkpoint
from loadtest.bench import random_checkpoint
from loadtest.children import Served, served
from loadtest.simulated import VARIABLE
from loadtest.tiny import make_base
from server.config import ModelConfig
from server.model.base import load_base
from server.model.slots import SlotBank

BATCH_SAMPLES = 8
TOKENS = [list(range(5, 13))]
DEVICE_SHARE = 0.1  # of the adapters that fit onto one replica's device
SETTLE_S = 3 * cluster.FOLLOW_S
TIMEOUT_S = 60.0


@dataclass(slots=True)
class Answered:
    """What callers got, each entry one reply.

    latency_s, replica, adapter, digest, done_s   of each; `done_s` by the clock of `time.monotonic`
    failures    what else came, in words
    """

    latency_s: list[float] = field(default_factory=list)
    replica: list[str] = field(default_factory=list)
    adapter: list[str] = field(default_factory=list)
    digest: list[str] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def rate(self, seconds: float) -> float:
        return len(self.latency_s) / seconds

    def replies(self) -> Iterator[tuple[str, str, float]]:
        """Adapter, digest and time of each."""
        return zip(self.adapter, self.digest, self.done_s, strict=True)

    def of(self, adapter: str, *, others: bool = False) -> NDArray[np.float64]:
        """Latencies of one adapter's requests, or of all others', seconds."""
        pairs = zip(self.adapter, self.latency_s, strict=True)
        return np.array([seconds for name, seconds in pairs if (name == adapter) is not others])


class Replicas:
    """`servers` run all the time; those that `use` lists take calls."""

    def __init__(self, servers: Sequence[Served], names: Sequence[str], folder: Path) -> None:
        self.servers, self.names, self.folder = servers, tuple(names), folder

    async def use(self, number: int) -> None:
        """Have every server know of the first so many."""
        _write(self.folder / "replicas", "\n".join(server.address for server in self.servers[:number]))
        await asyncio.sleep(0.5)

    def set_batch_s(self, seconds: float) -> None:
        _write(self.folder / "batch_s", str(seconds))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """One that routes, and has learned of the replicas in use."""
        async with AsyncClient(f"{cluster.SCHEME}{self.servers[0].address}", max_retries=0) as client:
            yield client

    @asynccontextmanager
    async def at_random(self, number: int) -> AsyncIterator[Callable[[str], AsyncClient]]:
        """A client for any adapter's request: each goes to one of the first so many servers by chance."""
        async with AsyncExitStack() as open_clients:
            clients = [
                await open_clients.enter_async_context(AsyncClient(server.address, max_retries=0))
                for server in self.servers[:number]
            ]
            yield lambda adapter: random.choice(clients)

    def counted(self, series: str) -> float:
        """Of all servers together."""
        return sum(server.metrics().get(series, 0.0) for server in self.servers)


@contextmanager
def replicas(number: int, num_adapters: int, settings: Sequence[str] = ()) -> Iterator[Replicas]:
    """So many servers over one folder of adapters, of which a tenth fits onto each device."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name, ExitStack() as running:
        folder = Path(name)
        base_path = make_base(folder / "base")
        names, slot_bytes = _make_adapters(base_path, folder / "adapters", num_adapters)
        _write(folder / "replicas", "")
        _write(folder / "batch_s", "0")
        options = ["--base", str(base_path), "--adapters", str(folder / "adapters"), "--batch-tokens", "4096"]
        own = (
            f"scheduler.max_batch_samples={BATCH_SAMPLES}",
            "scheduler.canary_share=0",
            "model.num_threads=1",
            f"cache.device_bytes={int(DEVICE_SHARE * num_adapters * slot_bytes)}",
            "api.advertise=127.0.0.1",
            f"api.replicas=file:{folder}/replicas",
            f"api.publish_folder={folder}/adapters",
            "api.reload_s=0.2",
            *settings,
        )
        options += [part for setting in own for part in ("--set", setting)]

        def start(number: int) -> Served:
            environment = {VARIABLE: str(folder / "batch_s")}
            disk = ("--disk", str(folder / f"disk-{number}"))  # one server's own
            return running.enter_context(served(*options, *disk, module="loadtest.simulated", environment=environment))

        with ThreadPoolExecutor(number) as pool:
            servers = list(pool.map(start, range(number)))
        yield Replicas(servers, names, folder)


async def closed_loop(
    client_of: Callable[[str], AsyncClient],
    draw: Callable[[int], str],
    num_callers: int,
    seconds: float,
    warm_up_s: float,
) -> Answered:
    """So many callers, each with one request in flight. What the warm-up answers is not counted.

    draw   the adapter that the caller of this number asks for next
    """
    answered, begins = Answered(), time.monotonic() + warm_up_s
    ends = begins + seconds

    async def call(number: int) -> None:
        while (started := time.monotonic()) < ends:
            name = draw(number)
            try:
                reply = await client_of(name).predict(name, tokens=TOKENS, timeout=TIMEOUT_S)
            except Error as error:
                if started >= begins:
                    answered.failures.append(f"{error.code.name} {error.reason}".strip())
                await asyncio.sleep(error.retry_after_s or 0.01)
                continue
            done = time.monotonic()
            if begins <= done < ends:
                answered.latency_s.append(done - started)
                answered.replica.append(reply.replica)
                answered.adapter.append(name)
                answered.digest.append(reply.digest)
                answered.done_s.append(done)

    await asyncio.gather(*map(call, range(num_callers)))
    return answered


def make_version(cluster: Replicas, name: str, seed: int) -> Path:
    """A folder with another adapter of this name."""
    base = load_base(ModelConfig(base=str(cluster.folder / "base"), device="cpu"))
    path = cluster.folder / "versions" / f"{seed}" / name
    write_checkpoint(path, replace(random_checkpoint(base, seed), name=name), base.info)
    return path


def _make_adapters(base_path: Path, folder: Path, number: int) -> tuple[tuple[str, ...], int]:
    """Names, and the bytes that one takes on the device."""
    base = load_base(ModelConfig(base=str(base_path), device="cpu"))
    checkpoints = [random_checkpoint(base, seed) for seed in range(number)]
    for checkpoint in checkpoints:
        write_checkpoint(folder / checkpoint.name, checkpoint, base.info)
    adapter = build_adapter(checkpoints[0], base.info, base.dtype, weights=base)
    return tuple(checkpoint.name for checkpoint in checkpoints), SlotBank(base.device, base.dtype).slot_bytes(adapter)


def _write(path: Path, text: str) -> None:
    """As a whole: servers look at any time."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.rename(path)


def shares(answered: Answered) -> Mapping[str, float]:
    """Of the replies, by replica."""
    return {name: answered.replica.count(name) / len(answered.replica) for name in sorted(set(answered.replica))}
