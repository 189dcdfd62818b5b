"""What is asked for, and how a server is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.cli.settings import load_config
from server.config import ApiConfig, CacheConfig, ModelConfig, ServerConfig
from server.errors import InvalidInput
from server.ray.plan import Plan, assignments, settings_of

CONFIG = ServerConfig(
    model=ModelConfig(base="a/b", num_threads=3),
    cache=CacheConfig(
        adapters=(Path("/adapters"),), compositions=('x = Stack("a", "b")', "ä = Fuse(a, b)"), watch_s=0.25
    ),
    api=ApiConfig(host="0.0.0.0", allow_anonymous=True, tenants="/t\\x.toml"),
)


def test_a_server_is_told_what_was_asked_for() -> None:
    told = assignments(settings_of(CONFIG))
    assert told[::2] == ["--set"] * (len(told) // 2)
    assert load_config(None, {}, told[1::2]) == CONFIG


def test_paths_hold_wherever_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    config = ServerConfig(
        model=ModelConfig(base="base"), cache=CacheConfig(adapters=(Path("adapters"),), disk_path="disk")
    )
    assert settings_of(config) == {
        "model.base": str(tmp_path / "base"),
        "cache.adapters": [str(tmp_path / "adapters")],
        "cache.disk_path": str(tmp_path / "disk"),
    }


@pytest.mark.parametrize(("text", "bounds"), [("2", (2, 2)), (" 1..8 ", (1, 8)), ("3..3", (3, 3))])
def test_replicas_are_a_number_or_a_range(text: str, bounds: tuple[int, int]) -> None:
    assert Plan(replicas=text).bounds == bounds


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"replicas": "many"}, "'many' is neither a number nor of the form 1..8"),
        ({"replicas": "0"}, "'0' must be 1 or more"),
        ({"replicas": "3..2"}, "no less than its beginning"),
        ({"num_gpus": -1}, "num_gpus -1 must be 0 or more"),
        ({"settings": {"api.advertise": "h"}}, "api.advertise is told to each replica"),
        ({"settings": {"api.replicas": "file:x"}}, "api.replicas is told to each replica"),
        ({"settings": {"cache.budget": 1}}, "unknown key cache.budget"),
        ({"settings": {"api.host": "0.0.0.0"}}, "is not loopback"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Plan(**arguments)


def test_threads_are_those_that_ray_keeps_unless_asked_for_or_on_a_gpu() -> None:
    assert Plan(num_cpus=4.0).child_settings()["model.num_threads"] == 4
    assert Plan(num_cpus=0.5).child_settings()["model.num_threads"] == 1
    assert Plan({"model.num_threads": 2}, num_cpus=4.0).child_settings()["model.num_threads"] == 2
    assert "model.num_threads" not in Plan(num_gpus=1.0).child_settings()
