"""The shipped Envoy in front of three real servers, called by plain gRPC as any language would.

Nothing here retries but Envoy.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from deployed import DEPLOY, read, read_all
from envoy_cluster import SHIPPED, Envoy, NameServer, Replica, free_ports, names_of, running, until
from make_adapters import make_adapter

from adapterd import predict_request
from adapterd.v1 import adapters_pb2, adapters_pb2_grpc
from adapterd.v1 import inference_pb2 as v1
from adapterd.v1.inference_pb2_grpc import InferenceStub
from server.core import BaseInfo

NAMES = names_of(read(SHIPPED))[:3]
OVERLAY = DEPLOY / "kubernetes/overlays/cluster"
ADAPTERS = [f"adapter-{number}" for number in range(40)]
HOT = ADAPTERS[0]
NO_RETRIES = [("grpc.enable_retries", 0)]
LAME_DUCK_S = 4.0
HEAD = {"head_type": "classification", "num_labels": 2}
pytestmark = pytest.mark.timeout(300)  # three servers start, and two start again


class Cluster:
    """Replicas by name, what answers for the names, and Envoy."""

    def __init__(self, names: NameServer, replicas: dict[str, Replica], envoy: Envoy) -> None:
        self.names, self.replicas, self.envoy = names, replicas, envoy

    def start(self, name: str, host: str) -> None:
        """Have a replica come back, at another address, and wait until Envoy sends it calls."""
        self.replicas[name].host = host
        self.replicas[name].start()
        self.replicas[name].wait()
        self.names.names[name] = host
        until(lambda: self.replicas[name].address in self.envoy.healthy())

    def name_of(self, address: str) -> str:
        [name] = [name for name, replica in self.replicas.items() if replica.address == address]
        return name


@pytest.fixture(scope="module")
def cluster(base_path: Path, base_info: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    for seed, name in enumerate(ADAPTERS):
        make_adapter(folder / "adapters" / name, base_info, config="seq_bn[reduction_factor=4]", head=HEAD, seed=seed)
    settings = (f"api.lame_duck_s={LAME_DUCK_S:g}", "model.num_threads=1", "scheduler.max_batch_tokens=1024")
    options = ["--base", str(base_path), "--device", "cpu", "--adapters", str(folder / "adapters")]
    options += [part for setting in settings for part in ("--set", setting)]
    [port] = free_ports(1)
    replicas = {name: Replica(f"127.0.1.{n}", port, tuple(options)) for n, name in enumerate(NAMES, 1)}
    names = NameServer()
    with ExitStack() as stack:
        stack.callback(names.close)
        for name, replica in replicas.items():
            replica.start()
            stack.callback(replica.stop, signal.SIGKILL)
            names.names[name] = replica.host
        for replica in replicas.values():
            replica.wait()
        envoy = stack.enter_context(running(folder, port, names.port))
        until(lambda: len(envoy.healthy()) == len(NAMES))
        yield Cluster(names, replicas, envoy)


@pytest.fixture
def stub(cluster: Cluster) -> Iterator[InferenceStub]:
    with grpc.insecure_channel(cluster.envoy.address, options=NO_RETRIES) as channel:
        yield InferenceStub(channel)


def ask(stub: InferenceStub, adapter: str, text: str = "hello") -> str:
    """The address of the replica that answers."""
    response = stub.Predict(predict_request(adapter, text), timeout=20, metadata=(("x-adapter", adapter),))
    assert response.results
    return str(response.replica)


def homes(cluster: Cluster, stub: InferenceStub) -> dict[str, str]:
    return {adapter: cluster.name_of(ask(stub, adapter)) for adapter in ADAPTERS}


def test_each_adapter_is_answered_by_one_replica_and_each_replica_has_its_share(
    cluster: Cluster, stub: InferenceStub
) -> None:
    first = homes(cluster, stub)
    assert all(homes(cluster, stub) == first for _ in range(3))
    assert all(count >= 5 for count in Counter(first.values()).values()) and {*first.values()} == {*NAMES}


def test_calls_that_name_no_adapter_go_to_any_replica(cluster: Cluster, stub: InferenceStub) -> None:
    asked = {stub.Predict(predict_request(HOT, "hello"), timeout=20).replica for _ in range(40)}
    assert asked == {replica.address for replica in cluster.replicas.values()}
    batch = v1.PredictBatchRequest(requests=[predict_request(adapter, "hello") for adapter in ADAPTERS[:4]])
    assert len(stub.PredictBatch(batch, timeout=20).outcomes) == 4
    messages = [v1.PredictStreamRequest(id=name, request=predict_request(name, "hello")) for name in ADAPTERS]
    assert {reply.id for reply in stub.PredictStream(iter(messages), timeout=20)} == {*ADAPTERS}
    with grpc.insecure_channel(cluster.envoy.address) as channel:
        listed = adapters_pb2_grpc.AdaptersStub(channel).List(adapters_pb2.ListRequest(), timeout=20)
    assert {adapter.name for adapter in listed.adapters} >= {*ADAPTERS}


def test_what_a_server_says_of_a_refusal_comes_through(stub: InferenceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(stub, "nobody-has-it")
    trailers = dict(caught.value.trailing_metadata())
    assert (caught.value.code(), trailers["adapterd-reason"]) == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")


@contextmanager
def load(cluster: Cluster) -> Iterator[list[str]]:
    """Calls for all adapters, one after the other; the list has who answered. A call that fails raises at the end."""
    answered: list[str] = []
    is_over = threading.Event()

    def go(stub: InferenceStub) -> None:
        while not is_over.is_set():
            for adapter in ADAPTERS:
                answered.append(ask(stub, adapter))

    with grpc.insecure_channel(cluster.envoy.address, options=NO_RETRIES) as channel, ThreadPoolExecutor(1) as pool:
        going = pool.submit(go, InferenceStub(channel))
        try:
            yield answered
        finally:
            is_over.set()
            going.result()


def test_a_killed_replica_costs_no_call_and_moves_no_other_adapter(cluster: Cluster, stub: InferenceStub) -> None:
    before, lost = homes(cluster, stub), NAMES[1]
    with load(cluster) as answered:
        cluster.replicas[lost].stop(signal.SIGKILL)
        until(lambda: cluster.replicas[lost].address not in cluster.envoy.healthy())
        num_before = len(answered)
        without = homes(cluster, stub)
        until(lambda: len(answered) > num_before + len(ADAPTERS))
    assert {adapter for adapter in ADAPTERS if without[adapter] != before[adapter]} == {
        adapter for adapter, home in before.items() if home == lost
    }
    assert lost not in without.values()
    cluster.start(lost, "127.0.1.11")
    assert homes(cluster, stub) == before  # at another address


def test_a_replica_that_drains_gets_nothing_more_and_loses_nothing(cluster: Cluster, stub: InferenceStub) -> None:
    name = NAMES[2]
    leaving, before = cluster.replicas[name], homes(cluster, stub)
    with load(cluster) as answered:
        leaving.process.send_signal(signal.SIGTERM)
        until(lambda: leaving.address not in cluster.envoy.healthy(), LAME_DUCK_S / 2)
        time.sleep(0.1)  # what was on its way
        num_before = len(answered)
        with grpc.insecure_channel(leaving.address) as channel:
            assert ask(InferenceStub(channel), HOT) == leaving.address  # it still accepts
        until(lambda: len(answered) > num_before + 2 * len(ADAPTERS))
        assert leaving.address not in answered[num_before:]
        leaving.stop(signal.SIGTERM)
    cluster.start(name, "127.0.1.12")
    assert homes(cluster, stub) == before


def test_an_envoy_that_stops_fails_its_probe_and_sends_its_callers_away(cluster: Cluster, tmp_path: Path) -> None:
    script = read_all(OVERLAY / "envoy.yaml")[0]["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]
    port = next(iter(cluster.replicas.values())).port
    with (
        running(tmp_path, port, cluster.names.port) as leaving,
        grpc.insecure_channel(leaving.address, options=NO_RETRIES) as channel,
    ):
        until(lambda: len(leaving.healthy()) == len(NAMES))
        seen: list[grpc.ChannelConnectivity] = []
        channel.subscribe(seen.append)
        ask(InferenceStub(channel), HOT)
        assert leaving.is_ready() and seen[-1] is grpc.ChannelConnectivity.READY
        words = [word.replace("9901", str(leaving.admin_port)) for word in script["exec"]["command"]]
        subprocess.run([word.replace("sleep 30", "read -t 10 -u 3") for word in words], check=True, timeout=20)
        assert not leaving.is_ready()
        ask(InferenceStub(channel), HOT)  # is answered, and is the last one of this connection
        until(lambda: seen[-1] is grpc.ChannelConnectivity.IDLE)


@pytest.fixture
async def channel(cluster: Cluster) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(cluster.envoy.address, options=NO_RETRIES) as channel:
        yield channel


async def test_a_hot_adapter_spills_over_and_the_others_stay(
    cluster: Cluster, stub: InferenceStub, channel: grpc.aio.Channel
) -> None:
    before = {adapter: cluster.replicas[name].address for adapter, name in homes(cluster, stub).items()}
    hot, stayed = await crowd(InferenceStub(channel), before)
    assert len(hot) > 1 and hot[before[HOT]] / hot.total() < 0.8
    assert stayed > 0.6


async def crowd(stub: InferenceStub, before: dict[str, str]) -> tuple[Counter[str], float]:
    """Who answers a hot adapter's calls, and the share of the others' calls that go where they went before."""
    hot: Counter[str] = Counter()
    stayed: list[bool] = []

    async def many(adapter: str, number: int) -> None:
        for _ in range(number):
            request = predict_request(adapter, "hello " * 6)
            response = await stub.Predict(request, timeout=60, metadata=(("x-adapter", adapter),))
            if adapter == HOT:
                hot[response.replica] += 1
            else:
                stayed.append(before[adapter] == response.replica)

    await asyncio.gather(*(many(HOT, 20) for _ in range(48)), *(many(adapter, 10) for adapter in ADAPTERS[1:9]))
    return hot, sum(stayed) / len(stayed)
