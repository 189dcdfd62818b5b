"""The command line as a shell sees it."""

from __future__ import annotations

import subprocess
import sys

import pytest

VERBS = ("serve", "demo", "predict", "list", "verify", "health")


def adapterd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "server", *arguments], capture_output=True, text=True, timeout=60)


def test_help_lists_every_verb() -> None:
    shown = adapterd("--help").stdout
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_an_example(verb: str) -> None:
    assert f"Example: adapterd {verb}" in adapterd(verb, "--help").stdout


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, server.cli; print([m for m in ('torch', 'grpc', 'transformers') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() == "[]"


def test_a_mistaken_setting_ends_with_one_line_and_exit_1() -> None:
    done = adapterd("serve", "--set", "cache.budget=1")
    assert done.returncode == 1
    assert done.stderr.startswith("adapterd: unknown key cache.budget") and "Traceback" not in done.stderr


def test_health_of_nobody_is_exit_1() -> None:
    done = adapterd("health", "--server", "127.0.0.1:1", "--timeout", "0.2")
    assert done.returncode == 1 and "not serving" in done.stderr


def test_predict_without_a_server_is_exit_1() -> None:
    done = adapterd("predict", "a", "text", "--server", "127.0.0.1:1", "--timeout", "5")
    assert done.returncode == 1 and done.stderr.startswith("adapterd: UNAVAILABLE")
