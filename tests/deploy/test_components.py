from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import components
import pytest
from components import component


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Those that were run, in place of apt and dpkg, which have nothing."""
    seen: list[Sequence[str]] = []

    def run(command: Sequence[str], folder: Path) -> None:
        seen.append(command)
        if "download" in command:
            raise subprocess.CalledProcessError(100, command, stderr="Unable to locate package")

    monkeypatch.setattr(components, "FOLDER", tmp_path)
    monkeypatch.setattr(components, "_run", run)
    return seen


def test_what_is_on_the_path_is_not_downloaded(commands: list[Sequence[str]]) -> None:
    assert component("coreutils", "ls").name == "ls" and commands == []


def test_lists_of_our_own_are_tried_where_the_systems_do_not_do(commands: list[Sequence[str]]) -> None:
    with pytest.raises(RuntimeError, match="nothing: neither on PATH nor to be had from apt: Unable to locate"):
        component("nothing", "no-such-program")
    assert [command[-1] for command in commands] == ["nothing", "update", "nothing"]


def test_a_package_without_the_program_is_an_error(
    commands: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "_run", lambda command, folder: None)
    with pytest.raises(RuntimeError, match="package nothing has no program no-such-program"):
        component("nothing", "no-such-program")
