"""What a tenant may see, use and change over the wire, and that nothing of another's shows."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from make_adapters import make_adapter
from prometheus_client import generate_latest

from adapterd import AsyncClient, Client, Error
from server.app import App
from server.config import ServerConfig
from server.core import BaseInfo
from server.tenants import digest_of

TENANTS = """
[acme]
credentials = ["sha256:{acme}"]
adapters = ["acme-*"]
shared = ["intent", "base", "duo"]
can_load = true
max_pins = 1

[beta]
credentials = ["sha256:{beta}"]
adapters = ["beta-*"]
shared = ["intent"]
"""
Connect = Callable[[str], AsyncClient]


@pytest.fixture(params=[0, 2], ids=["one process", "two fronts"])
def config(
    request: pytest.FixtureRequest, config: ServerConfig, adapters_path: Path, base_info: BaseInfo, tmp_path: Path
) -> ServerConfig:
    for seed, name in enumerate(("acme-one", "acme-two", "beta-one")):
        head = {"head_type": "classification", "num_labels": 2}
        make_adapter(adapters_path / name, base_info, config="seq_bn[reduction_factor=4]", head=head, seed=seed)
    write(tmp_path / "tenants.toml")
    return replace(
        config,
        cache=replace(config.cache, compositions=("duo = Stack(beta-one, intent) : intent",)),
        api=replace(
            config.api,
            tenants=str(tmp_path / "tenants.toml"),
            publish_folder=str(adapters_path),
            audit_log=str(tmp_path / "audit.jsonl"),
            frontends=request.param,
            reload_s=0.05,
        ),
    )


def write(path: Path, text: str = TENANTS) -> None:
    path.write_text(text.format(acme=digest_of("acme-token"), beta=digest_of("beta-token")))


@pytest.fixture
async def connect(app: App) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:
        clients: list[AsyncClient] = []

        def connect(tenant: str) -> AsyncClient:
            clients.append(AsyncClient(f"127.0.0.1:{app.grpc_port}", token=f"{tenant}-token", max_retries=0))
            return clients[-1]

        yield connect
        for client in clients:
            stack.push_async_callback(client.close)


async def refusal(call: object) -> Error:
    with pytest.raises(Error) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def test_each_tenant_gets_its_own_and_what_is_shared(connect: Connect) -> None:
    acme, beta = connect("acme"), connect("beta")
    for client, names in ((acme, ["acme-one", "acme-two", "duo", "intent"]), (beta, ["beta-one", "intent"])):
        assert [adapter.name async for adapter in client.list()] == names
        for name in names:
            assert (await client.predict(name, "hello")).digest
    assert (await acme.predict("base", "hello")).digest
    assert (await acme.predict("Stack(acme-one, intent)", "hello")).digest


@pytest.mark.parametrize("name", ["beta-one", "embed", "Stack(acme-one, beta-one)", "Parallel(intent, beta-one)"])
async def test_what_a_tenant_may_not_use_is_as_unknown_as_what_is_not_there(connect: Connect, name: str) -> None:
    acme = connect("acme")
    missing = name.replace("beta-one", "beta-xyz").replace("embed", "embxd")
    for ask in (lambda name: acme.predict(name, "hello"), lambda name: acme.get(name)):
        known, unknown = await refusal(ask(name)), await refusal(ask(missing))
        assert known.code is unknown.code is grpc.StatusCode.NOT_FOUND
        assert known.message.replace("beta-one", "beta-xyz").replace("embed", "embxd") == unknown.message
        assert known.reason == unknown.reason


async def test_heads_of_others_are_not_lent(connect: Connect) -> None:
    acme = connect("acme")
    known, unknown = [await refusal(acme.predict("acme-one", "hello", heads=name)) for name in ("beta-one", "beta-xyz")]
    assert known.message.replace("beta-one", "beta-xyz") == unknown.message


async def test_only_who_may_load_changes_adapters_and_only_its_own(connect: Connect, app: App, tmp_path: Path) -> None:
    acme, beta = connect("acme"), connect("beta")
    await acme.load("acme-one")
    assert (await acme.pin("acme-one")).is_pinned
    assert (await refusal(acme.pin("acme-two"))).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in (acme.load("intent"), acme.unload("intent"), acme.pin("intent"), beta.load("beta-one")):
        assert (await refusal(call)).code is grpc.StatusCode.PERMISSION_DENIED
    for call in (acme.load("beta-one"), acme.unload("beta-one"), acme.prefetch(["acme-one", "beta-one"])):
        assert (await refusal(call)).code is grpc.StatusCode.NOT_FOUND
    await acme.pin("acme-one", False)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {(line["tenant"], line["action"], line["adapter"], line["outcome"]) for line in lines} >= {
        ("acme", "Load", "acme-one", "OK"),
        ("acme", "Pin", "acme-two", "OVERLOADED"),
        ("acme", "Unload", "intent", "FORBIDDEN"),
        ("acme", "Load", "beta-one", "ADAPTER_NOT_FOUND"),
        ("beta", "Load", "beta-one", "FORBIDDEN"),
    }


@pytest.mark.parametrize("token", ["", "acme", "beta-token ", "x" * 3000])
async def test_without_known_credentials_nothing_is_answered(app: App, token: str, tmp_path: Path) -> None:
    async with AsyncClient(f"127.0.0.1:{app.grpc_port}", token=token, max_retries=0) as client:
        if token == "beta-token ":  # spaces around it are not part of it
            assert (await client.predict("intent", "hello")).digest
            return
        for call in (client.predict("intent", "hello"), client.get("intent"), client.load("no such")):
            error = await refusal(call)
            assert error.code is grpc.StatusCode.UNAUTHENTICATED
        stream = [outcome async for outcome in _stream_or_error(client)]
        # grpc.aio itself says INTERNAL where it was still writing as the call ended
        assert stream in ([grpc.StatusCode.UNAUTHENTICATED], [grpc.StatusCode.INTERNAL])
        await client.wait_ready()
    assert "UNAUTHENTICATED" in (tmp_path / "audit.jsonl").read_text()
    assert token == "" or token not in (tmp_path / "audit.jsonl").read_text()


async def _stream_or_error(client: AsyncClient) -> AsyncIterator[object]:
    from adapterd import predict_request

    try:
        async for outcome in client.predict_stream([("1", predict_request("intent", "hello"))]):
            yield outcome
    except Error as error:
        yield error.code


async def test_the_file_is_read_again_and_a_broken_one_leaves_those_before(
    connect: Connect, app: App, tmp_path: Path
) -> None:
    acme, beta, path = connect("acme"), connect("beta"), tmp_path / "tenants.toml"
    await acme.predict("acme-one", "hello")

    async def until(code: grpc.StatusCode | None, client: AsyncClient, name: str) -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    await client.predict(name, "hello")
                    found = None
                except Error as error:
                    found = error.code
                if found is code:
                    return
                await asyncio.sleep(0.02)

    write(path, TENANTS.replace('shared = ["intent"]', 'shared = ["intent", "acme-*"]'))
    await until(None, beta, "acme-one")
    path.write_text("[acme]\nadapters = 3")
    async with asyncio.timeout(10):
        while b'adapterd_reload_failed{what="tenants"} 1.0' not in app.metrics.render():
            await asyncio.sleep(0.02)
    await beta.predict("acme-one", "hello")
    write(path, TENANTS.partition("[beta]")[0])
    await until(grpc.StatusCode.UNAUTHENTICATED, beta, "intent")
    await acme.predict("acme-one", "hello")
    assert b'adapterd_reload_failed{what="tenants"} 0.0' in app.metrics.render()


async def test_metrics_name_tenants_and_lose_those_that_left(connect: Connect, app: App, tmp_path: Path) -> None:
    async def until(is_so: Callable[[bytes], bool]) -> None:
        """Of all processes together; fronts tell theirs every second."""
        async with asyncio.timeout(10):
            while not is_so(generate_latest(app.totals.registry)):
                await asyncio.sleep(0.02)

    await connect("acme").predict("acme-one", "hello")
    await connect("beta").predict("beta-one", "hello")
    for tenant in ("acme", "beta"):
        series = f'adapterd_tenant_requests_total{{outcome="answered",tenant="{tenant}"}} 1.0'
        await until(lambda page, series=series: series.encode() in page)
    write(tmp_path / "tenants.toml", TENANTS.partition("[beta]")[0])
    await until(lambda page: b'tenant="beta"' not in page)
    assert b'tenant="acme"' in generate_latest(app.totals.registry)


async def test_publishing_needs_the_right_and_a_name_of_ones_own(
    connect: Connect, adapters_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters_path / "acme-one", tmp_path / "new")
    acme, beta = connect("acme"), connect("beta")
    assert (await refusal(acme.publish(tmp_path / "new", "beta-new"))).code is grpc.StatusCode.NOT_FOUND
    assert (await refusal(acme.publish(tmp_path / "new", "intent"))).code is grpc.StatusCode.PERMISSION_DENIED
    assert (await refusal(beta.publish(tmp_path / "new", "beta-new"))).code is grpc.StatusCode.PERMISSION_DENIED
    await acme.publish(tmp_path / "new", "acme-new")
    assert (await acme.predict("acme-new", "hello")).digest == (await acme.predict("acme-one", "hello")).digest
    assert not (adapters_path / "beta-new").exists()


def test_the_blocking_client_takes_its_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERD_TOKEN", "from-outside")
    with Client("127.0.0.1:1") as client:
        assert client._metadata == (("authorization", "Bearer from-outside"),)
