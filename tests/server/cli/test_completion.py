"""Completion as a shell asks for it: with the variables that the shells' scripts set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app as command_line
from server.cli import completion
from training.tasks import TASKS

SHELLS = ("bash", "zsh", "fish")


def adapterd(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )


def asked(line: str) -> dict[str, str]:
    """What bash's script says of a line with the cursor at its end."""
    return {"_ADAPTERD_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


def offered(line: str) -> list[str]:
    """What bash is told, by a command in this process."""
    done = CliRunner().invoke(command_line, [], env=asked(line))
    assert done.exit_code == 0 and done.stderr == "", done.output
    return done.stdout.split()


def test_verbs_and_options_are_offered_by_the_command() -> None:
    assert adapterd(**asked("adapterd p")).stdout.split() == ["predict", "push", "pull"]
    assert "--json" in offered("adapterd list --")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("adapterd serve --set api.tls", ["api.tls_certificate=", "api.tls_key=", "api.tls_client_ca="]),
        ("adapterd doctor --device c", ["cpu", "cuda"]),
        ("adapterd train --task r", ["regression"]),
        ("adapterd train --config comp", ["compacter", "compacter++"]),
        ("adapterd verify --backend e", ["eager"]),
        ("adapterd serve --base mini", ["minilm"]),
        ("adapterd serve --base ./mini", []),  # then the shell offers files
        ("adapterd serve --config ", []),
    ],
)
def test_values_of_options_are_offered_where_they_are_known(line: str, words: list[str]) -> None:
    assert offered(line) == words


def test_without_a_server_no_names_are_offered_and_nothing_is_said() -> None:
    done = adapterd(**asked("adapterd predict --server 127.0.0.1:1 b"))
    assert (done.stdout, done.stderr) == ("base\n", "")
    assert offered("adapterd predict --server 127.0.0.1:1 x") == []
    assert offered("adapterd traffic --server 127.0.0.1:1 some ") == []


def test_a_certificate_that_is_not_there_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERD_CA", "/none.pem")
    assert offered("adapterd predict s") == []


def test_the_tasks_offered_are_those_that_can_be_trained() -> None:
    assert tuple(TASKS) == completion.TASKS


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell: str) -> None:
    command = [sys.executable, "-m", "server", "--show-completion", shell]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0 and f"_ADAPTERD_COMPLETE=complete_{shell}" in done.stdout, done.stderr


def test_a_script_is_installed_where_the_shell_looks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--install-completion", "bash"]
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0 and "bash completion installed" in done.stdout, done.stderr
    [script] = tmp_path.rglob("adapterd.sh")
    assert str(script) in (tmp_path / ".bashrc").read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_runs_the_script(tmp_path: Path) -> None:
    """With a command of this name that is the sources' own."""
    (tmp_path / "adapterd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m server "$@"\n')
    (tmp_path / "adapterd").chmod(0o755)
    script = """
        eval "$(adapterd --show-completion bash)"
        COMP_WORDS=(adapterd he); COMP_CWORD=1
        _adapterd_completion adapterd
        echo "${COMPREPLY[@]}"
    """
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == "health", done.stderr
