"""The verbs that talk to a server, and the demo."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner, Result

from adapterd.v1.adapters_pb2 import Adapter
from server.app import App
from server.cli import app as command_line
from server.config import ServerConfig
from server.tenants import digest_of


def adapterd(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(command_line, arguments, input=stdin, env={"COLUMNS": "120"})


async def call(app: App, *arguments: str, stdin: str | None = None) -> Result:
    """A verb against the running server."""
    return await asyncio.to_thread(adapterd, *arguments, "--server", f"127.0.0.1:{app.grpc_port}", stdin=stdin)


async def test_predict_prints_a_row_per_text(app: App) -> None:
    done = await call(app, "predict", "intent", "first [text]", "second text")
    assert done.exit_code == 0
    assert "first [text]" in done.stdout and "second text" in done.stdout and "LABEL_" in done.stdout


async def test_predict_reads_lines_and_prints_json(app: App) -> None:
    done = await call(app, "predict", "intent", "--json", "--top-k", "1", stdin="one\n\ntwo\n")
    reply = json.loads(done.stdout)
    assert [len(result["classification"]["labels"]) for result in reply["results"]] == [1, 1]


async def test_predict_takes_a_pair(app: App) -> None:
    done = await call(app, "predict", "spans", "who", "--pair", "abc did")
    assert done.exit_code == 0, done.output


async def test_a_failed_predict_is_one_line_and_exit_1(app: App) -> None:
    done = await call(app, "predict", "missing", "x")
    assert done.exit_code == 1
    assert done.stderr.startswith("adapterd: NOT_FOUND: ") and done.stderr.count("\n") == 1


async def test_list_shows_every_adapter(app: App) -> None:
    shown = (await call(app, "list")).stdout
    assert all(name in shown for name in ("embed", "intent", "topics", "tags", "spans", "origin"))
    rows = (await call(app, "list", "--json", "--prefix", "in")).stdout.splitlines()
    assert [json.loads(row)["name"] for row in rows] == ["intent"]


async def test_health_is_exit_0(app: App) -> None:
    assert (await call(app, "health")).exit_code == 0
    shown = json.loads((await call(app, "health", "--json")).stdout)
    assert shown == {"server": f"127.0.0.1:{app.grpc_port}", "is_serving": True}


async def test_json_has_all_fields_of_a_message(app: App) -> None:
    """Those that are empty or 0 too, so that a program finds them."""
    traffic = json.loads((await call(app, "traffic", "intent", "--json")).stdout)
    [listed] = map(json.loads, (await call(app, "list", "--prefix", "intent", "--json")).stdout.splitlines())
    assert traffic == listed and listed["is_pinned"] is False
    left_out = {"loaded_at", "last_used_at"}  # messages, which are there or not
    assert listed.keys() == {field.name for field in Adapter.DESCRIPTOR.fields} - left_out


async def test_a_failed_call_as_json_is_one_object_on_stderr(app: App) -> None:
    done = await call(app, "predict", "missing", "x", "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    facts = json.loads(done.stderr)
    assert (facts["code"], facts["reason"]) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
    assert "'missing'" in facts["error"] and "list the adapters" in facts["error"]


async def test_names_of_adapters_are_completed(app: App) -> None:
    words = f"adapterd predict --server 127.0.0.1:{app.grpc_port} t"
    asked = {"_ADAPTERD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    command = [sys.executable, "-m", "server"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **asked}
    )
    assert await process.communicate() == (b"tags\ntopics\n", b"")


async def test_a_port_that_speaks_http_is_told(app: App) -> None:
    done = await asyncio.to_thread(adapterd, "list", "--server", f"127.0.0.1:{app.http_port}")
    assert done.exit_code == 1 and "speaks plain HTTP, as the port of the metrics does" in done.stderr


async def test_tls_to_a_server_without_is_told(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("ADAPTERD_CA", str(tmp_path / "ca.pem"))
    done = await call(app, "list")
    assert done.exit_code == 1
    assert (
        f"127.0.0.1:{app.grpc_port} speaks without TLS, and ADAPTERD_CA asks for it; unset ADAPTERD_CA" in done.stderr
    )


class TestTls:
    @pytest.fixture
    def config(self, config: ServerConfig, tmp_path: Path) -> ServerConfig:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(tmp_path / "ca.pem")
        certificate = ca.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
        files = {"tls_certificate": str(tmp_path / "chain.pem"), "tls_key": str(tmp_path / "key.pem")}
        return replace(config, api=replace(config.api, **files))

    async def test_a_call_in_the_clear_to_tls_is_told(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ADAPTERD_CA", raising=False)
        done = await call(app, "list")
        assert done.exit_code == 1
        assert f"127.0.0.1:{app.grpc_port} speaks TLS, and this call came in the clear; set ADAPTERD_CA" in done.stderr

    async def test_an_authority_that_did_not_sign_is_told(
        self, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ADAPTERD_CA", str(tmp_path / "ca.pem"))
        assert (await call(app, "list")).exit_code == 0
        trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
        done = await call(app, "list", "--json")
        assert done.exit_code == 1
        facts = json.loads(done.stderr)
        assert facts["code"] == "UNAVAILABLE" and "TLS with 127.0.0.1" in facts["error"]


class TestTenants:
    @pytest.fixture
    def config(self, config: ServerConfig, tmp_path: Path) -> ServerConfig:
        text = f'[acme]\ncredentials = ["sha256:{digest_of("secret")}"]\nadapters = ["intent"]\n'
        (tmp_path / "tenants.toml").write_text(text)
        return replace(config, api=replace(config.api, tenants=str(tmp_path / "tenants.toml")))

    async def test_a_call_without_a_token_is_told_where_to_put_one(
        self, app: App, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("ADAPTERD_TOKEN", raising=False)
        done = await call(app, "list")
        assert done.exit_code == 1 and done.stderr.count("\n") == 1
        assert "UNAUTHENTICATED" in done.stderr and "set ADAPTERD_TOKEN (or --token)" in done.stderr
        shown = await call(app, "list", "--json", "--token", "secret")
        assert [json.loads(line)["name"] for line in shown.stdout.splitlines()] == ["intent"]


@pytest.mark.parametrize(("expect", "exit_code"), [("LABEL_0", 1), ("LABEL_1", 0), ("LABEL_2", 1)])
def test_demo_once_prints_the_table_and_fails_on_a_wrong_answer(
    base_path: Path, adapters_path: Path, tmp_path: Path, expect: str, exit_code: int
) -> None:
    texts = tmp_path / "demo.jsonl"
    cases = [
        {"adapter": "intent", "text": "some text", "expect": expect},
        {"adapter": "topics", "text": "other"},
    ]
    texts.write_text("\n".join(json.dumps(case) for case in cases))
    options = ["--base", str(base_path), "--adapters", str(adapters_path), "--texts", str(texts)]
    done = adapterd("demo", "--once", "--device", "cpu", *options)
    assert done.exit_code == exit_code, done.output
    assert "some text" in done.stdout and "other" in done.stdout


def test_demo_fails_when_an_adapter_is_missing(base_path: Path, adapters_path: Path, tmp_path: Path) -> None:
    texts = tmp_path / "demo.jsonl"
    texts.write_text('{"adapter": "missing", "text": "x"}')
    options = ["--base", str(base_path), "--adapters", str(adapters_path), "--texts", str(texts)]
    done = adapterd("demo", "--once", "--device", "cpu", *options)
    assert done.exit_code == 1 and "ADAPTER_NOT_FOUND" in done.stdout
