"""Both clients before real gRPC servers that know of each other, around pipelines that the test writes."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import xxhash
from wire import make_reply, serve_replica

from adapterd import AsyncClient, Client, Error, cluster, predict_request
from adapterd.calls import routed_adapter
from adapterd.routing import POINTS
from adapterd.v1 import inference_pb2 as v1
from loadtest.scale import Ring
from server.core import Reply, Request, Timings
from server.errors import Overloaded, Unavailable

ADAPTERS = [f"adapter-{number}" for number in range(48)]
Answer = Callable[[Request], Reply]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FOLLOW_S", 0.1)


@dataclass
class Replica:
    """One server that stays until `stop`. `answer` may be replaced while it runs; `is_stuck`: it gives none."""

    address: str = ""
    requests: list[str] = field(default_factory=list)
    answer: Answer = make_reply
    is_stuck: bool = False
    running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def infer(self, request: Request) -> Reply:
        self.requests.append(request.adapter)
        if self.is_stuck:
            await asyncio.Event().wait()
        return self.answer(request)

    async def stop(self) -> None:
        await self.running.aclose()


class Cluster:
    """Servers over one list, which tells of those that `listed` has."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "replicas"
        self.file.write_text("")
        self.replicas: list[Replica] = []

    async def add(self) -> Replica:
        replica = Replica()
        port = await replica.running.enter_async_context(serve_replica(replica.infer, self.file))
        replica.address = f"127.0.0.1:{port}"
        self.replicas.append(replica)
        self.list(*self.replicas)
        return replica

    def list(self, *replicas: Replica) -> None:
        aside = self.file.with_suffix(".new")
        aside.write_text("\n".join(replica.address for replica in replicas))
        aside.rename(self.file)

    @property
    def server(self) -> str:
        return f"cluster:{self.replicas[0].address}"

    def homes(self) -> dict[str, set[str]]:
        """Which replicas saw requests for each adapter, since the last look."""
        homes: dict[str, set[str]] = defaultdict(set)
        for replica in self.replicas:
            for adapter in replica.requests:
                homes[adapter].add(replica.address)
            replica.requests.clear()
        return dict(homes)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    for _ in range(3):
        await cluster.add()
    await asyncio.sleep(0.1)  # until each has read the list
    yield cluster
    for replica in cluster.replicas:
        await replica.stop()


class Both:
    """The blocking client (each call in a thread) or the async one, behind one interface."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        if isinstance(self._client, Client):
            return await asyncio.to_thread(getattr(self._client, method), *args, **options)
        return await getattr(self._client, method)(*args, **options)


KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])


@asynccontextmanager
async def calling(kind: type[Client] | type[AsyncClient], server: str, **options: Any) -> AsyncIterator[Both]:
    client = kind(server, **options)
    try:
        yield Both(client)
    finally:
        closed = client.close()
        if closed is not None:
            await closed


async def ask_all(call: Both, adapters: list[str] = ADAPTERS, times: int = 3) -> None:
    for _ in range(times):
        await asyncio.gather(*(call("predict", adapter, "x") for adapter in adapters))


@KINDS
async def test_requests_of_an_adapter_stay_with_one_replica(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server) as call:
        await ask_all(call)
        first = three.homes()
        assert {len(homes) for homes in first.values()} == {1} and len(first) == len(ADAPTERS)
        shares = Counter(next(iter(homes)) for homes in first.values())
        assert len(shares) == 3 and min(shares.values()) >= 6, shares
    async with calling(kind, f"cluster:{three.replicas[2].address}", connections=2) as call:  # another client agrees
        await ask_all(call)
        assert three.homes() == first


@KINDS
async def test_a_replica_that_dies_costs_no_call_and_moves_no_other_adapter(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server) as call:
        await ask_all(call)
        before = three.homes()
        dead = three.replicas[1]
        await dead.stop()  # and is listed still
        await ask_all(call)
        after = three.homes()
    for adapter, homes in before.items():
        assert after[adapter] == homes if homes != {dead.address} else len(after[adapter]) == 1
    assert dead.address not in set().union(*after.values())


@KINDS
async def test_the_list_is_followed(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server) as call:
        await ask_all(call)
        before = three.homes()
        new = await three.add()
        await asyncio.sleep(0.5)
        await ask_all(call)
        after = three.homes()
        moved = {adapter for adapter in ADAPTERS if after[adapter] != before[adapter]}
        assert {next(iter(after[adapter])) for adapter in moved} == {new.address}
        assert 0 < len(moved) < len(ADAPTERS) / 2
        three.list(*three.replicas[1:])
        await asyncio.sleep(0.5)
        three.homes()
        await ask_all(call)
        assert three.replicas[0].requests == []


@KINDS
async def test_any_seed_that_lives_will_do(kind: Any, three: Cluster) -> None:
    async with calling(kind, f"cluster:127.0.0.1:1,{three.replicas[1].address}") as call:
        await ask_all(call, times=1)
    assert len(set().union(*three.homes().values())) == 3


@KINDS
async def test_without_any_replica_the_error_says_so(kind: Any) -> None:
    async with calling(kind, "cluster:127.0.0.1:1", max_retries=0) as call:
        for _ in range(2):
            with pytest.raises(Error) as caught:
                await call("predict", "a", "x")
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@KINDS
async def test_a_server_that_is_alone_is_a_cluster_of_one(kind: Any, tmp_path: Path) -> None:
    replica = Replica()
    async with serve_replica(replica.infer, None) as port, calling(kind, f"cluster:127.0.0.1:{port}") as call:
        assert (await call("predict", "a", "x")).results[0].classification.labels[0].label == "x"


@pytest.mark.parametrize("server", ["cluster:", "cluster:host", "cluster:host:port", "cluster::50051"])
def test_a_seed_without_a_port_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Client(server)


@KINDS
async def test_a_batch_is_divided_and_put_together_again(kind: Any, three: Cluster) -> None:
    requests = [predict_request(ADAPTERS[number % 12], f"text {number}") for number in range(60)]
    async with calling(kind, three.server) as call:
        outcomes = await call("predict_batch", requests)
    assert [one.results[0].classification.labels[0].label for one in outcomes] == [f"text {n}" for n in range(60)]
    assert {len(homes) for homes in three.homes().values()} == {1}


def waiting(batches: float) -> Answer:
    """Answers that say how long the request was in the queue."""
    timings = Timings(queue_s=batches * 0.04, compute_s=0.04)
    return lambda request: replace(make_reply(request), timings=timings)


@KINDS
async def test_a_busy_replica_hands_requests_to_the_next_one_until_it_is_calm(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server) as call:
        await ask_all(call, ["hot"])
        (home,) = three.homes()["hot"]
        busy = next(replica for replica in three.replicas if replica.address == home)
        busy.answer = waiting(10)
        await ask_all(call, ["hot"], times=200)
        three.homes()
        await ask_all(call, ["hot", "cold"], times=200)
        served = {replica.address: replica.requests.count("hot") for replica in three.replicas}
        assert served[home] <= 120, served  # and of `cold` none moved, unless its home is the same
        busy.answer = waiting(0.5)
        await asyncio.gather(*(ask_all(call, ["hot"], times=60) for _ in range(30)))
        three.homes()
        await ask_all(call, ["hot"], times=20)
        assert three.homes() == {"hot": {home}}


@KINDS
async def test_where_the_next_one_is_busy_but_less_so_all_are_asked(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server) as call:
        await ask_all(call, ["hot"])
        (home,) = three.homes()["hot"]
        for replica in three.replicas:
            replica.answer = waiting(10 if replica.address == home else 5)
        await ask_all(call, ["hot"], times=300)
        three.homes()
        await ask_all(call, ["hot"], times=100)
        assert len(three.homes()["hot"]) == 3


@KINDS
async def test_where_all_wait_alike_nothing_spills(kind: Any, three: Cluster) -> None:
    for replica in three.replicas:
        replica.answer = waiting(10)
    async with calling(kind, three.server) as call:
        await ask_all(call, ["hot"], times=300)
        counts = Counter({replica.address: replica.requests.count("hot") for replica in three.replicas})
    assert counts.most_common(1)[0][1] >= 150, counts


@KINDS
async def test_a_replica_that_refuses_is_helped_too(kind: Any, three: Cluster) -> None:
    def refuse(request: Request) -> Reply:
        raise Overloaded("no room", retry_after_s=0.01)

    async with calling(kind, three.server, max_retries=0) as call:
        await ask_all(call, ["hot"])
        (home,) = three.homes()["hot"]
        next(replica for replica in three.replicas if replica.address == home).answer = refuse
        num_answered = 0
        for _ in range(200):
            try:
                await call("predict", "hot", "x")
                num_answered += 1
            except Error as error:
                assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert num_answered >= 50


async def test_the_ring_of_the_simulation_is_that_of_grpc(three: Cluster) -> None:
    addresses = [replica.address for replica in three.replicas]
    ring = Ring(addresses, POINTS)
    async with calling(AsyncClient, three.server) as call:
        await ask_all(call, times=1)
    homes = ring.homes(np.array([xxhash.xxh64_intdigest(name.encode()) for name in ADAPTERS], np.uint64))
    assert {name: {addresses[home]} for name, home in zip(ADAPTERS, homes, strict=True)} == three.homes()


def test_what_the_ring_hashes_is_what_the_server_checks() -> None:
    assert routed_adapter(predict_request("Stack(a, b)", "x")) == "Stack(a, b)"
    assert routed_adapter(predict_request("näme", "x")) == ""
    same = v1.PredictBatchRequest(requests=[predict_request("a", "x"), predict_request("a", "y")])
    assert routed_adapter(same) == "a"
    mixed = v1.PredictBatchRequest(requests=[predict_request("a", "x"), predict_request("b", "y")])
    assert routed_adapter(mixed) == ""


@KINDS
async def test_a_silent_seed_takes_no_longer_than_the_call_may(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and says nothing
        port = silent.getsockname()[1]
        async with calling(kind, f"cluster:127.0.0.1:{port}", max_retries=0) as call:
            started = time.monotonic()
            asked = [call("predict", "a", "x", timeout=0.3) for _ in range(5 if kind is Client else 40)]
            failures = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(failure, Error) for failure in failures), failures
            assert time.monotonic() - started < 2


@KINDS
async def test_looking_for_the_replicas_is_a_part_of_the_time_that_a_call_may_take(
    kind: Any, three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = cluster.resolved

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return resolved(*args, **options)

    monkeypatch.setattr(cluster, "resolved", slowly)
    for replica in three.replicas:
        replica.is_stuck = True
    async with calling(kind, three.server) as call:
        started = time.monotonic()
        with pytest.raises(Error, match="DEADLINE_EXCEEDED"):
            await call("predict", "a", "x", timeout=1.5)  # two looks at names, half a second each, come first
        assert time.monotonic() - started < 2.2


@KINDS
async def test_a_closed_client_looks_for_nothing(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server) as call:
        await call("close")
        with pytest.raises(Error, match="the client is closed"):
            await call("predict", "a", "x")


@KINDS
async def test_who_has_time_is_not_told_that_another_had_none(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server) as call:
        asked = [call("predict", "a", "x", timeout=timeout) for timeout in (0.0005, 20, 20, 20)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [outcome for outcome in outcomes[1:] if isinstance(outcome, BaseException)] == []


@KINDS
async def test_waiting_for_the_first_replica(kind: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    replica, late = Replica(), AsyncExitStack()

    async def start() -> None:
        await asyncio.sleep(0.5)
        await late.enter_async_context(serve_replica(replica.infer, None, port))

    starting = asyncio.create_task(start())
    async with late, calling(kind, f"cluster:127.0.0.1:{port}") as call:
        with pytest.raises(Error, match="serve|UNIMPLEMENTED|Method not found"):  # it has no service of health
            await call("wait_ready", 10)
        assert (await call("predict", "a", "x")).adapter == "a"
    await starting


@KINDS
async def test_a_part_of_a_batch_that_fails_leaves_the_others_their_answers(kind: Any, three: Cluster) -> None:
    async with calling(kind, three.server, max_retries=0) as call:
        requests = [predict_request(ADAPTERS[number % 24], "x") for number in range(48)]
        await call("predict_batch", requests)
        dead = three.replicas[2]
        homes = {name for name, found in three.homes().items() if dead.address in found}
        await asyncio.gather(*(replica.stop() for replica in three.replicas[:2]))
        outcomes = await call("predict_batch", [predict_request("x" * 300, "x"), *requests])
    assert isinstance(outcomes[0], Error) and homes
    assert not any(isinstance(outcome, Error) for outcome in outcomes[1:])


@KINDS
async def test_what_a_replica_that_ends_cannot_answer_is_asked_elsewhere(kind: Any, three: Cluster) -> None:
    def end(request: Request) -> Reply:
        raise Unavailable("the server is stopping")

    async with calling(kind, three.server) as call, calling(kind, three.server, max_retries=0) as once:
        await ask_all(call, ["hot"])
        await ask_all(once, ["hot"])
        (home,) = three.homes()["hot"]
        next(replica for replica in three.replicas if replica.address == home).answer = end
        assert (await call("predict", "hot", "x", timeout=10)).replica not in ("", home)
        [outcome] = await call("predict_batch", [predict_request("hot", "x")])
        assert isinstance(outcome, Error)  # of one request in a batch that was answered: the caller's to repeat
        with pytest.raises(Error, match="the server is stopping"):
            await once("predict", "hot", "x")


@KINDS
async def test_what_the_next_replica_cannot_answer_is_asked_at_home(kind: Any, three: Cluster) -> None:
    def end(request: Request) -> Reply:
        raise Unavailable("the server is stopping")

    async with calling(kind, three.server) as call:
        await ask_all(call, ["hot"])
        (home,) = three.homes()["hot"]
        busy = next(replica for replica in three.replicas if replica.address == home)
        busy.answer = waiting(10)
        await ask_all(call, ["hot"], times=40)  # its requests go to a second one too
        (second,) = three.homes()["hot"] - {home}
        helper = next(replica for replica in three.replicas if replica.address == second)
        helper.answer = end
        replies = [await call("predict", "hot", "x", timeout=10) for _ in range(40)]
        assert second not in {reply.replica for reply in replies} and helper.requests


@KINDS
async def test_a_call_that_a_client_had_under_way_when_it_was_closed_is_not_sent_again(
    kind: Any, three: Cluster
) -> None:
    async with calling(kind, three.server) as call:
        await ask_all(call, ["hot"])
        (address,) = three.homes()["hot"]
        next(replica for replica in three.replicas if replica.address == address).is_stuck = True
        held = asyncio.create_task(call("predict", "hot", "x", timeout=10))
        while not three.homes():
            await asyncio.sleep(0.01)
        await call("close")
        with pytest.raises((Error, asyncio.CancelledError)):
            await held
    assert not three.homes()


@KINDS
async def test_batches_spill_over_too(kind: Any, three: Cluster) -> None:
    for replica in three.replicas:
        replica.answer = waiting(10)
    async with calling(kind, three.server) as call:
        for _ in range(80):
            await call("predict_batch", [predict_request("hot", "x")])
    assert len(three.homes()["hot"]) > 1


@KINDS
async def test_addresses_that_cannot_be_are_left_out(kind: Any, three: Cluster) -> None:
    three.file.write_text("\n".join([*(replica.address for replica in three.replicas), "a..b:1", "[::1]:1"]))
    await asyncio.sleep(0.2)
    async with calling(kind, three.server) as call:
        await ask_all(call)
        three.homes()
        three.list(*three.replicas[:2])
        await asyncio.sleep(0.6)
        await ask_all(call)
    assert three.replicas[2].requests == []


@KINDS
async def test_a_name_of_several_addresses_is_several_seeds(
    kind: Any, three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def two(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host != "replicas.test":
            return real(host, port, *args, **options)
        return [*real("127.0.0.7", port, *args, **options), *real("127.0.0.1", port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two)  # nobody listens at the first
    port = three.replicas[0].address.rpartition(":")[2]
    async with calling(kind, f"cluster:replicas.test:{port}") as call:
        await ask_all(call, times=1)
    assert len(set().union(*three.homes().values())) == 3


def test_without_the_hash_of_grpc_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", "false")
    with pytest.raises(ValueError, match="RING_HASH_SET_REQUEST_HASH_KEY is 'false'"):
        Client("cluster:127.0.0.1:1")
