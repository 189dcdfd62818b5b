"""A real server as a child process, on a port that the system chose."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, int]]:
    """Address and process id of `adapterd serve` with these arguments; stopped at the end.

    raises RuntimeError with what the server said last if it ends before it serves
    """
    command = [sys.executable, "-m", "server", "serve", *arguments, "--port", "0", "--http-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = _port(process.stderr)
        # The rest of the log goes by unread, or the server would wait for its reader.
        rest = threading.Thread(target=deque, args=(process.stderr, 0))
        rest.start()
        try:
            yield f"127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            rest.join()


def _port(log: Iterable[str]) -> int:
    """Read the log up to the line that has it."""
    lines: deque[str] = deque(maxlen=20)
    for line in log:
        lines.append(line)
        if found := re.search(r"grpc_port=(\d+)", line):
            return int(found[1])
    raise RuntimeError("the server ended before it served:\n" + "".join(lines))
