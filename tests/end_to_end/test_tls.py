"""TLS and mTLS over the wire, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from http.client import HTTPSConnection
from pathlib import Path

import grpc
import pytest
import trustme

from adapterd import AsyncClient, Error
from server.app import App
from server.config import ServerConfig
from server.errors import InvalidInput

TENANTS = '[acme]\nsubjects = ["acme.example"]\nadapters = ["intent"]\n'
Connect = Callable[..., AsyncClient]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def write(folder: Path, certificate: trustme.LeafCert) -> None:
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))


@pytest.fixture
def config(config: ServerConfig, ca: trustme.CA, tmp_path: Path) -> ServerConfig:
    write(tmp_path, ca.issue_cert("localhost"))
    files = {"tls_certificate": str(tmp_path / "chain.pem"), "tls_key": str(tmp_path / "key.pem")}
    return replace(config, api=replace(config.api, reload_s=0.05, **files))


@pytest.fixture
async def connect(app: App) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def close(client: AsyncClient) -> None:
            await client.close()

        def connect(ca: trustme.CA, own: trustme.LeafCert | None = None) -> AsyncClient:
            chain = own.cert_chain_pems[0].bytes() if own else None
            key = own.private_key_pem.bytes() if own else None
            credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)
            client = AsyncClient(f"localhost:{app.grpc_port}", credentials=credentials, max_retries=0)
            stack.push_async_callback(close, client)
            return client

        yield connect


async def code_of(client: AsyncClient) -> grpc.StatusCode | None:
    try:
        await client.predict("intent", "hello", timeout=10)
    except Error as error:
        return error.code
    return None


async def until(client_of: Callable[[], AsyncClient], code: grpc.StatusCode | None) -> None:
    """A new connection each time: open ones keep what they began with."""
    async with asyncio.timeout(20):
        while await code_of(client_of()) is not code:
            await asyncio.sleep(0.05)


async def test_answers_go_to_whoever_trusts_the_certificate(connect: Connect, ca: trustme.CA, app: App) -> None:
    assert await code_of(connect(ca)) is None
    assert await code_of(connect(trustme.CA())) is grpc.StatusCode.UNAVAILABLE
    async with AsyncClient(f"localhost:{app.grpc_port}", max_retries=0) as in_the_clear:
        assert await code_of(in_the_clear) is grpc.StatusCode.UNAVAILABLE


async def test_the_client_takes_its_certificates_from_the_environment(
    app: App, ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("ADAPTERD_CA", str(tmp_path / "ca.pem"))
    async with AsyncClient(f"localhost:{app.grpc_port}", max_retries=0) as client:
        assert await code_of(client) is None


async def test_a_new_certificate_is_served_and_calls_go_on(connect: Connect, ca: trustme.CA, tmp_path: Path) -> None:
    open_before, other = connect(ca), trustme.CA()
    assert await code_of(open_before) is None
    write(tmp_path, other.issue_cert("localhost"))
    await until(lambda: connect(other), None)
    assert await code_of(open_before) is None
    assert await code_of(connect(ca)) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("kind", ["empty", "garbage", "another key", "gone"])
async def test_a_broken_certificate_leaves_the_one_before_and_is_told(
    connect: Connect, app: App, ca: trustme.CA, tmp_path: Path, kind: str
) -> None:
    assert await code_of(connect(ca)) is None
    if kind == "another key":
        ca.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    elif kind == "gone":
        (tmp_path / "chain.pem").unlink()
    else:
        (tmp_path / "chain.pem").write_bytes(b"" if kind == "empty" else b"-----BEGIN CERTIFICATE-----\nAAAA")
    async with asyncio.timeout(20):
        while b'adapterd_reload_failed{what="certificates"} 1.0' not in app.metrics.render():
            await asyncio.sleep(0.02)
    assert await code_of(connect(ca)) is None
    write(tmp_path, ca.issue_cert("localhost"))
    async with asyncio.timeout(20):
        while b'adapterd_reload_failed{what="certificates"} 0.0' not in app.metrics.render():
            await asyncio.sleep(0.02)
    assert await code_of(connect(ca)) is None


async def test_a_server_does_not_start_on_what_is_no_certificate(config: ServerConfig, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(InvalidInput, match=r"key\.pem"):
        await App(config).start()


class TestMutual:
    @pytest.fixture
    def config(self, config: ServerConfig, ca: trustme.CA, tmp_path: Path) -> ServerConfig:
        ca.cert_pem.write_to_path(tmp_path / "ca.pem")
        (tmp_path / "tenants.toml").write_text(TENANTS)
        api = replace(config.api, tls_client_ca=str(tmp_path / "ca.pem"), tenants=str(tmp_path / "tenants.toml"))
        return replace(config, api=api)

    async def test_a_client_certificate_says_which_tenant_calls(self, connect: Connect, ca: trustme.CA) -> None:
        acme = connect(ca, ca.issue_cert("acme.example"))
        assert await code_of(acme) is None
        assert [adapter.name async for adapter in acme.list()] == ["intent"]
        assert await code_of(connect(ca, ca.issue_cert("other.example"))) is grpc.StatusCode.UNAUTHENTICATED

    async def test_without_a_certificate_that_is_trusted_there_is_no_connection(
        self, connect: Connect, ca: trustme.CA
    ) -> None:
        assert await code_of(connect(ca)) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(connect(ca, trustme.CA().issue_cert("acme.example"))) is grpc.StatusCode.UNAVAILABLE


def http_status(app: App, ca: trustme.CA, own: trustme.LeafCert | None = None, host: str = "localhost") -> int | None:
    """None where no connection comes about."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if own is not None:
        own.configure_cert(context)
    connection = HTTPSConnection(host, app.http_port, context=context, timeout=10)
    try:
        connection.request("GET", "/v2/models/intent")
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


async def test_http_speaks_tls_too_and_follows_its_certificate(app: App, ca: trustme.CA, tmp_path: Path) -> None:
    assert await asyncio.to_thread(http_status, app, ca) == 200
    other = trustme.CA()
    assert await asyncio.to_thread(http_status, app, other) is None
    (tmp_path / "chain.pem").write_text("broken")
    await asyncio.sleep(0.3)
    assert await asyncio.to_thread(http_status, app, ca) == 200
    write(tmp_path, other.issue_cert("localhost"))
    async with asyncio.timeout(20):
        while await asyncio.to_thread(http_status, app, other) != 200:
            await asyncio.sleep(0.05)
    assert await asyncio.to_thread(http_status, app, ca) is None


class TestClientCertificatesOverHttp:
    @pytest.fixture
    def config(self, config: ServerConfig, ca: trustme.CA, tmp_path: Path) -> ServerConfig:
        ca.cert_pem.write_to_path(tmp_path / "clients.pem")
        (tmp_path / "tenants.toml").write_text(TENANTS)
        files = {"tls_client_ca": str(tmp_path / "clients.pem"), "tenants": str(tmp_path / "tenants.toml")}
        return replace(config, api=replace(config.api, **files))

    async def test_a_certificate_says_who_calls_until_its_ca_is_taken_away(
        self, app: App, ca: trustme.CA, tmp_path: Path
    ) -> None:
        acme, stranger = ca.issue_cert("acme.example"), ca.issue_cert("stranger.example")
        assert await asyncio.to_thread(http_status, app, ca, acme) == 200
        assert await asyncio.to_thread(http_status, app, ca, stranger) == 401
        assert await asyncio.to_thread(http_status, app, ca) is None
        trustme.CA().cert_pem.write_to_path(tmp_path / "clients.pem")
        async with asyncio.timeout(20):
            while await asyncio.to_thread(http_status, app, ca, acme) is not None:
                await asyncio.sleep(0.05)
