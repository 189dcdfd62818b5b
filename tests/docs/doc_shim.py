"""The `adapterd` of a page. Standard library only, for it starts many times.

It has the zygote do the work. `serve` returns once the server serves: what a reader types into another terminal comes
next. Ports are free ones; `ports.json` tells which stands for which.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

PORTS = {"--port": "50051", "--http-port": "9090"}
SERVING = re.compile(r"grpc_port=(\d+) http_port=(\d+)")
START_S = 100


def main() -> int:
    arguments = sys.argv[1:]
    verb = arguments[0] if arguments else ""
    if verb == "serve" and "--help" not in arguments:
        return serve(arguments)
    state = json.loads(state_file().read_text())
    os.environ["DOC_SERVER"] = f"127.0.0.1:{state['ports']['50051']}"
    return Command(arguments, [0, 1, 2]).wait()


class Command:
    """`files` are its stdin, stdout and stderr."""

    def __init__(self, arguments: list[str], files: list[int]) -> None:
        self._zygote = socket.socket(socket.AF_UNIX)
        self._zygote.connect(os.environ["DOC_ZYGOTE"])
        said = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(self._zygote, [len(said).to_bytes(4, "big")], files)
        self._zygote.sendall(said)
        self._lines = self._zygote.makefile("r")
        self.pid = int(self._lines.readline())

    def wait(self) -> int:
        return int(self._lines.readline() or 70)

    @property
    def is_over(self) -> bool:
        return not is_alive(self.pid)


def serve(arguments: list[str]) -> int:
    """Stands for a server on the same port before it, which a reader stops first."""
    file = state_file()
    state = json.loads(file.read_text())
    wanted = {flag: value_of(arguments, flag) or nominal for flag, nominal in PORTS.items()}
    named = {str(real): nominal for nominal, real in state["ports"].items()}
    grpc, http = (named.get(port, port) for port in wanted.values())
    stop(state["pids"].pop(grpc, None))
    kept = without(arguments, *PORTS)
    quick = [] if "--batch-tokens" in arguments else ["--batch-tokens", "512"]  # nothing to measure
    log = file.parent / f"serve-{grpc}.log"
    with log.open("wb") as out, open(os.devnull, "rb") as nothing:
        command = Command(
            [*kept, *quick, "--port", "0", "--http-port", "0"], [nothing.fileno(), out.fileno(), out.fileno()]
        )
        found = served(command, log)
    if found is None:
        sys.stderr.write(log.read_text())
        return 1
    state["ports"] |= {grpc: int(found[1]), http: int(found[2])}
    state["pids"][grpc] = command.pid
    file.write_text(json.dumps(state))
    return 0


def served(command: Command, log: Path) -> re.Match[str] | None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        is_over = command.is_over
        if found := SERVING.search(log.read_text()):
            return found
        if is_over:
            return None
        time.sleep(0.05)
    os.kill(command.pid, signal.SIGKILL)
    return None


def stop(pid: int | None) -> None:
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + START_S
    while is_alive(pid):
        if time.monotonic() > until:
            raise SystemExit(f"server {pid} does not stop")
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def state_file() -> Path:
    return Path(os.environ["DOC_STATE"])


def value_of(arguments: list[str], flag: str) -> str | None:
    for at, argument in enumerate(arguments):
        if argument == flag:
            return arguments[at + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def without(arguments: list[str], *flags: str) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip or argument in flags:
            skip = not skip
        elif argument.split("=")[0] not in flags:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    sys.exit(main())
