"""The command line as a shell sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import server.cli
from server.cli import app as command_line

VERBS = tuple(verb.NAME for verb in server.cli.VERBS)


def adapterd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "server", *arguments], capture_output=True, text=True, timeout=60)


def shown_by(*arguments: str) -> str:
    return CliRunner().invoke(command_line, arguments, env={"COLUMNS": "200"}).stdout


def test_help_lists_every_verb() -> None:
    shown = adapterd("--help").stdout
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_an_example(verb: str) -> None:
    assert f"Example: adapterd {verb}" in shown_by(verb, "--help")


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
    assert done.returncode == 1
    assert done.stderr.startswith(
        "adapterd: UNAVAILABLE: nobody answers at 127.0.0.1:1 (Connection refused); start one"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no texts"),
        (b"\xff", "cannot be read"),
        (b'{"adapter": "a", "text": "x"}\nnot json', "line 2 is not JSON"),
        (b"[1]", "line 1 is not of the form"),
        (b'{"adapter": "a"}', "line 1 is not of the form"),
        (b'{"adapter": 1, "text": "x"}', "line 1 is not of the form"),
        (b'{"adapter": "a", "text": "x", "expect": 5}', "expect 5 is neither"),
        (b'{"adapter": "a", "text": "x", "text_pair": 5}', "text_pair 5 is not a text"),
    ],
)
def test_demo_texts_that_are_none_are_one_line_and_exit_1(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "texts").write_bytes(content)
    done = CliRunner().invoke(command_line, ["demo", "--once", "--texts", str(tmp_path / "texts")])
    assert done.exit_code == 1
    assert done.stderr.startswith("adapterd: ") and says in done.stderr and done.stderr.count("\n") == 1


def test_a_signal_while_the_demo_starts_stops_it_in_order() -> None:
    code = """
import asyncio, os, signal
import server.app, server.cli.demo, server.cli.demo_table
from server.cli import app

class App:
    base = None
    grpc_port = 1

    def __init__(self, config): ...

    async def start(self):
        os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self):
        print("stopped")

async def ask(app, cases):
    await asyncio.Event().wait()

server.app.App = App
server.cli.demo._ask = ask
server.cli.demo_table.print_header = lambda base: None
app(["demo", "--once"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "stopped\n"), done.stderr
