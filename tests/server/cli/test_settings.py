"""Configuration from a file, assignments and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.settings import load_config
from server.config import ServerConfig
from server.errors import InvalidInput


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "adapterd.toml"
    path.write_text(
        '[model]\nbase = "minilm"\ndtype = "bfloat16"\n'
        '[cache]\nadapters = ["a", "b"]\nload_timeout_s = 5\n'
        "[api]\nport = 1\n"
    )
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert load_config(None, {}) == ServerConfig()


def test_file_sets_what_it_names(file: Path) -> None:
    config = load_config(file, {})
    assert config.model.dtype == "bfloat16"
    assert config.cache.adapters == (Path("a"), Path("b"))
    assert config.cache.load_timeout_s == 5.0 and isinstance(config.cache.load_timeout_s, float)
    assert config.api.http_port == ServerConfig().api.http_port


def test_flags_override_assignments_and_those_the_file(file: Path) -> None:
    assert load_config(file, {}, ["api.port=2"]).api.port == 2
    assert load_config(file, {"api.port": 3}, ["api.port=2"]).api.port == 3
    assert load_config(file, {"api.port": None}).api.port == 1


def test_an_assignment_may_be_a_bare_word(file: Path) -> None:
    assert load_config(None, {}, ["model.device=cpu", 'model.dtype="float16"']).model.device == "cpu"


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("cache.budget=1", "unknown key cache.budget; known: adapters, device_bytes"),
        ("disk.size=1", "unknown section .disk.; known: model, cache, scheduler, api"),
        ("api.port=high", "api.port = 'high' is not a whole number"),
        ("api.port=true", "api.port = True is not a whole number"),
        ("cache.adapters=[1]", "cache.adapters"),
        ("port=1", "section.key"),
        ("api.port", "section.key=value"),
        ("model.dtype=int8", "dtype 'int8' is not one of"),
    ],
)
def test_mistakes_are_named(assignment: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        load_config(None, {}, [assignment])


@pytest.mark.parametrize("text", ["port = 1", "[model", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput):
        load_config(path, {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="missing.toml"):
        load_config(tmp_path / "missing.toml", {})
