"""What the files of deploy/ say, as the server itself reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from server.cli import app, serve
from server.config import ServerConfig

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CONFIG = "/etc/adapterd/adapterd.toml"
STATE = "/var/lib/adapterd"
PORT, HTTP_PORT = 50051, 9090


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def read_all(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A console command of the environment that the tests run in."""
    command = [Path(sys.executable).parent / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def config_of(
    arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, files: Mapping[str, Path] | None = None
) -> ServerConfig:
    """What the real command line makes of `adapterd ARGUMENTS`, up to the point where it would serve.

    files   where those of the deployment are here
    """
    served: list[ServerConfig] = []
    monkeypatch.setattr(serve, "run_until_signal", served.append)
    monkeypatch.setattr(serve, "set_up_logging", lambda: None)
    here = [str((files or {}).get(word, word)) for word in arguments]
    result = CliRunner().invoke(app, here)
    assert result.exit_code == 0 and len(served) == 1, result.output
    return served[0]


def seconds(text: str) -> float:
    assert text.endswith("s") and not text.endswith("ms"), text
    return float(text[:-1])


def num_bytes(text: str) -> int:
    """Of Kubernetes' and compose's sizes: 4Gi, 512m, 1g."""
    units = {"ki": 10, "mi": 20, "gi": 30, "k": 10, "m": 20, "g": 30}
    number = text.rstrip("kKmMgGi")
    return int(number) << units[text[len(number) :].lower()]


def check_serves_everyone(config: ServerConfig) -> None:
    """What holds wherever callers come over a network."""
    assert config.api.tenants and not config.api.allow_anonymous
    assert (config.api.port, config.api.http_port) == (PORT, HTTP_PORT)
    assert Path(config.cache.disk_path).is_relative_to(STATE)


def memory_of(config: ServerConfig) -> int:
    """The bytes that a configuration asks for by itself, but for the base and its activations."""
    return config.cache.host_bytes + config.cache.device_bytes + config.api.max_in_flight_bytes
