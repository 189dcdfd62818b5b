"""adapterd top against a real server, on a terminal and without one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from adapterd import AsyncClient
from server.app import App
from server.cli import app as command_line
from server.metrics import Metrics

ENTER, LEAVE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@contextmanager
def metrics_server(token: str = "") -> Iterator[str]:
    """A server of metrics; with a token it wants that one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = not token or self.headers["Authorization"] == f"Bearer {token}"
            self.send_response(200 if is_known else 401)
            self.end_headers()
            self.wfile.write(Metrics().render() if is_known else b"")

        def log_message(self, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


async def test_once_shows_what_the_server_does(app: App, client: AsyncClient) -> None:
    arguments = ["top", "--http", f"127.0.0.1:{app.http_port}", "--once", "--interval", "0.5"]

    async def shown(*more: str) -> str:
        command = [sys.executable, "-m", "server", *arguments, *more]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0].decode()

    asked = asyncio.create_task(shown("--json"))
    while not asked.done():
        await client.predict("intent", "some text")
    facts = json.loads(asked.result())
    assert facts["requests_per_s"]["OK"] > 0 and facts["latency_s"]["total"]["p50"] > 0
    assert facts["server"]["base"] == "tiny" and facts["tiers"]["device"]["adapters"] == 1
    picture = await shown()
    assert "requests/s" in picture and "tiny on cpu" in picture


def test_json_is_a_line_per_snapshot_until_it_is_stopped() -> None:
    with metrics_server() as place:
        command = [sys.executable, "-m", "server", "top", "--http", place, "--interval", "0.1", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            lines = [json.loads(process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0 and process.stderr.read() == ""
    assert all(line["requests_per_s"] == {} for line in lines)


def test_a_token_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTERD_TOKEN", raising=False)
    with metrics_server("secret") as place:
        arguments = ["top", "--http", place, "--once", "--interval", "0.1", "--json"]
        refused = CliRunner().invoke(command_line, arguments)
        assert refused.exit_code == 1 and refused.stdout == ""
        assert "set ADAPTERD_TOKEN" in json.loads(refused.stderr)["error"]
        assert CliRunner().invoke(command_line, [*arguments, "--token", "secret"]).exit_code == 0
        assert CliRunner().invoke(command_line, arguments, env={"ADAPTERD_TOKEN": "secret"}).exit_code == 0


def test_once_without_a_server_says_so() -> None:
    done = CliRunner().invoke(command_line, ["top", "--http", "127.0.0.1:1", "--once"])
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("adapterd: no answer from 127.0.0.1:1 (Connection refused); start a server with")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_live_view_leaves_the_terminal_as_it_was(number: signal.Signals) -> None:
    with metrics_server() as place:
        shown, exit_code = on_terminal(["--http", place], b"requests/s", number)
    assert exit_code == 0
    assert shown.count(ENTER) == shown.count(LEAVE) == 1
    assert shown.endswith(SHOW_CURSOR + LEAVE) or shown.endswith(LEAVE + SHOW_CURSOR)


def test_the_live_view_waits_for_a_server_that_is_away() -> None:
    says = b"no answer from 127.0.0.1:1 (Connection refused), trying again"
    shown, exit_code = on_terminal(["--http", "127.0.0.1:1"], says, signal.SIGINT)
    assert exit_code == 0 and says in shown


def on_terminal(options: list[str], until: bytes, number: signal.Signals) -> tuple[bytes, int]:
    """What is drawn on a terminal of 80x24 until these bytes were seen and a signal came, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "server", "top", "--interval", "0.1", *options]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, **terminal, env=environment, preexec_fn=_heed_interrupts) as process:
        os.close(theirs)
        shown = b""
        while until not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(number)
        while chunk := _read(ours):
            shown += chunk
        os.close(ours)
        return shown, process.wait(20)


def _heed_interrupts() -> None:
    """Whatever runs the tests in the background has them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _read(descriptor: int) -> bytes:
    """Nothing where the other end was closed."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
