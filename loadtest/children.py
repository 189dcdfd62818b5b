"""A real server as a child process, on a port that the system chose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

NO_MORE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    address: str
    pid: int
    http_port: int

    @property
    def memory_mib(self) -> float:
        return memory_mib(self.pid)

    def metrics(self, token: str = "") -> dict[str, float]:
        """Every series by its name and labels, as the server shows them.

        token   of a tenant that can_observe, where tenants are declared
        """
        headers = {"authorization": f"Bearer {token}"} if token else {}
        with urlopen(Request(f"http://127.0.0.1:{self.http_port}/metrics", headers=headers), timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {series: float(value) for series, _, value in pairs}


def memory_mib(pid: int | str = "self") -> float:
    """What a process has of its own, resident or swapped out. Pages of files come and go as the system likes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return (
        sum(int(size) for size in re.findall(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB", status, re.MULTILINE)) / 1024
    )


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, int]]:
    """Address and process id of `adapterd serve` with these arguments; stopped at the end.

    raises RuntimeError with what the server said last if it ends before it serves
    """
    with served(*arguments) as server:
        yield server.address, server.pid


@contextmanager
def served(*arguments: str, module: str = "server", environment: Mapping[str, str] = NO_MORE) -> Iterator[Served]:
    """See `serving`.

    module        that is run in place of the server itself
    environment   variables beside this process's own
    """
    command = [sys.executable, "-m", module, "serve", *arguments, "--port", "0", "--http-port", "0"]
    own = {**os.environ, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own) as process:
        assert process.stderr is not None
        port, http_port = _ports(process.stderr)
        # The rest of the log goes by unread, or the server would wait for its reader.
        rest = threading.Thread(target=deque, args=(process.stderr, 0))
        rest.start()
        try:
            yield Served(f"127.0.0.1:{port}", process.pid, http_port)
        finally:
            process.terminate()
            rest.join()


def _ports(log: Iterable[str]) -> tuple[int, int]:
    """Read the log up to the line that has them."""
    lines: deque[str] = deque(maxlen=20)
    for line in log:
        lines.append(line)
        if found := re.search(r"grpc_port=(\d+) http_port=(\d+)", line):
            return int(found[1]), int(found[2])
    raise RuntimeError("the server ended before it served:\n" + "".join(lines))
