"""adapterd doctor as a whole: a healthy set-up, and broken ones, each with the advice that mends it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trustme
from make_adapters import make_adapter
from make_bases import save_base
from typer.testing import CliRunner

from server.app import App
from server.cli import app as command_line
from server.config import ServerConfig
from server.core import BaseInfo
from server.tenants import digest_of

Findings = dict[str, dict[str, Any]]
TENANTS = '[acme]\ncredentials = ["sha256:{}"]\nadapters = ["*"]\n'


@pytest.fixture
def healthy(base_path: Path, adapters_path: Path, tmp_path: Path) -> dict[str, str]:
    """Options of a server that would start; a test replaces one."""
    (tmp_path / "tenants.toml").write_text(TENANTS.format(digest_of("secret")))
    (tmp_path / "tenants.toml").chmod(0o600)
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    return {
        "--base": str(base_path),
        "--adapters": str(adapters_path),
        "--device": "cpu",
        "--port": "0",
        "--http-port": "0",
        "--disk": str(tmp_path / "disk"),
        "--tenants": str(tmp_path / "tenants.toml"),
        "--tls-certificate": str(tmp_path / "chain.pem"),
        "--tls-key": str(tmp_path / "key.pem"),
        "--set": "cache.host_bytes=1048576",
    }


def arguments(options: dict[str, str]) -> list[str]:
    return ["doctor", *(word for pair in options.items() for word in pair if word)]


def doctor(options: dict[str, str]) -> tuple[int, Findings]:
    """The exit code, and the worst finding of each check."""
    done = CliRunner().invoke(command_line, [*arguments(options), "--json"])
    document = json.loads(done.stdout)
    found: Findings = {}
    for finding in document["findings"]:
        if finding["state"] != "ok" or finding["name"] not in found:
            found[finding["name"]] = finding
    assert document["num_problems"] == sum(f["state"] == "problem" for f in document["findings"])
    return done.exit_code, found


def only_problem(options: dict[str, str], name: str) -> tuple[str, str]:
    """The message and the remedy of the one check that finds a problem."""
    exit_code, found = doctor(options)
    assert [own["name"] for own in found.values() if own["state"] == "problem"] == [name], found
    assert exit_code == 1
    return found[name]["message"], found[name]["remedy"]


def test_a_healthy_setup_has_no_problem(healthy: dict[str, str]) -> None:
    command = [sys.executable, "-m", "server", *arguments(healthy), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and document["num_problems"] == 0, done.stdout
    names = "configuration python libraries stubs torch clock device compute cores open_files base tokenizer memory"
    more = "adapters disk disk_space tenants tls tls_key listening port http_port"
    assert [finding["name"] for finding in document["findings"]] == [*names.split(), *more.split()]


def test_people_see_a_line_per_check_and_the_remedy_below(healthy: dict[str, str]) -> None:
    shown = CliRunner().invoke(command_line, arguments(healthy | {"--base": "/none"}), env={"COLUMNS": "200"})
    lines = [line.split() for line in shown.stdout.splitlines()]
    [number] = [index for index, words in enumerate(lines) if words[:2] == ["problem", "base"]]
    assert lines[number + 1][0] == "->" and "(model.base)" in lines[number + 1]
    assert [word.rstrip(",") for word in lines[-1][:2]] == ["1", "problem"] and shown.exit_code == 1


async def test_a_port_that_another_server_has(app: App, healthy: dict[str, str]) -> None:
    options = healthy | {"--port": str(app.grpc_port)}
    message, remedy = await asyncio.to_thread(only_problem, options, "port")
    assert f"127.0.0.1:{app.grpc_port} is taken by an adapterd that serves tiny" in message
    assert f"--port {app.grpc_port + 1} (api.port)" in remedy


def test_a_base_that_is_not_there(healthy: dict[str, str], tmp_path: Path) -> None:
    message, remedy = only_problem(healthy | {"--base": str(tmp_path / "none")}, "base")
    assert f"'{tmp_path / 'none'}' does not exist" in message and "--base (model.base)" in remedy


def test_a_base_without_weights(healthy: dict[str, str], tmp_path: Path) -> None:
    (save_base(tmp_path / "bare") / "model.safetensors").unlink()
    message, remedy = only_problem(healthy | {"--base": str(tmp_path / "bare")}, "base")
    assert f"{tmp_path / 'bare'} holds no weights" in message and "--base (model.base)" in remedy


def test_an_adapter_for_another_base(healthy: dict[str, str], adapters_path: Path, base_info: BaseInfo) -> None:
    make_adapter(adapters_path / "wide", replace(base_info, hidden_size=64))
    message, remedy = only_problem(healthy, "adapter")
    assert message.startswith("'wide': ") and "hidden_size 64" in message and "hidden_size 32" in message
    assert "--base (model.base)" in remedy and f"{adapters_path / 'wide'} out of --adapters (cache.adapters)" in remedy


def test_a_broken_tenants_file(healthy: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tenants.toml").write_text('[acme]\ncredentials = ["secret"]\n')
    message, remedy = only_problem(healthy, "tenants")
    assert "tenant 'acme': a credential is not sha256:" in message and "secret" not in message
    assert f"{tmp_path / 'tenants.toml'}, named by --tenants (api.tenants)" in remedy and "adapterd token" in remedy


def test_a_key_of_another_certificate(healthy: dict[str, str], tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    message, remedy = only_problem(healthy, "tls")
    assert message == f"{tmp_path / 'key.pem'} is not the key of {tmp_path / 'chain.pem'}"
    assert "(api.tls_certificate, api.tls_key)" in remedy


def test_a_disk_folder_that_cannot_be_written(healthy: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # what even root cannot make a folder in
    place = str(tmp_path / "file" / "tier")
    message, remedy = only_problem(healthy | {"--disk": place}, "disk")
    assert f"disk_path {place!r} cannot be written" in message and "--disk (cache.disk_path)" in remedy


def test_cuda_without_a_gpu(healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message, remedy = only_problem(healthy | {"--device": "cuda"}, "device")
    assert "device 'cuda' asked for" in message and "--device cpu (model.device)" in remedy


def test_anyone_on_the_network_may_call(healthy: dict[str, str]) -> None:
    del healthy["--tenants"]
    message, remedy = only_problem(healthy | {"--host": "0.0.0.0"}, "configuration")
    assert "'0.0.0.0' is not loopback" in message
    assert "--tenants FILE (api.tenants)" in remedy and "--allow-anonymous" in remedy


def test_a_setting_that_does_not_exist_leaves_the_environment_to_look_at(healthy: dict[str, str]) -> None:
    message, remedy = only_problem(healthy | {"--set": "cache.budget=1"}, "configuration")
    assert "unknown key cache.budget; known: adapters, device_bytes" in message and "docs/operations.md" in remedy


def test_a_registry_that_is_not_there(healthy: dict[str, str], tmp_path: Path) -> None:
    place = str(tmp_path / "registry")
    message, remedy = only_problem(healthy | {"--registry": place}, "registry")
    assert place in message and "--registry (cache.registries)" in remedy


def test_replicas_that_are_listed_nowhere_and_one_that_is_not_told_its_address(
    healthy: dict[str, str], tmp_path: Path
) -> None:
    listed = tmp_path / "replicas"
    message, remedy = only_problem(healthy | {"--set": f"api.replicas=file:{listed}"}, "replicas")
    assert str(listed) in message and "HOST:PORT" in remedy
    listed.write_text("a:1\nb:2\n")
    exit_code, found = doctor(healthy | {"--set": f"api.replicas=file:{listed}"})
    assert exit_code == 0 and found["replicas"]["state"] == "warning"
    assert "lists 2" in found["replicas"]["message"] and "api.advertise" in found["replicas"]["remedy"]


async def test_a_server_that_runs_is_looked_at_in_place_of_the_ports(app: App, healthy: dict[str, str]) -> None:
    options = healthy | {"--port": str(app.grpc_port), "--server": f"127.0.0.1:{app.grpc_port}"}
    exit_code, found = await asyncio.to_thread(doctor, options)
    assert exit_code == 0 and "port" not in found
    assert found["server"]["state"] == "ok" and "serves 5 adapters on tiny" in found["server"]["message"]


def test_a_server_that_does_not_run(healthy: dict[str, str]) -> None:
    message, remedy = only_problem(healthy | {"--server": "127.0.0.1:1"}, "server")
    assert message == "nobody answers at 127.0.0.1:1 (Connection refused)" and "adapterd serve" in remedy


class TestTenants:
    @pytest.fixture
    def config(self, config: ServerConfig, healthy: dict[str, str]) -> ServerConfig:
        return replace(config, api=replace(config.api, tenants=healthy["--tenants"]))

    async def test_a_server_that_wants_credentials(
        self, app: App, healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("ADAPTERD_TOKEN", raising=False)
        options = healthy | {"--server": f"127.0.0.1:{app.grpc_port}"}
        _, remedy = await asyncio.to_thread(only_problem, options, "server")
        assert "set ADAPTERD_TOKEN" in remedy and "adapterd token NAME" in remedy
        exit_code, found = await asyncio.to_thread(doctor, options | {"--token": "secret"})
        assert exit_code == 0 and found["server"]["state"] == "ok"
