"""What a Ray of one's own leaves behind: for a minute, agents that would tell a cluster of its own end."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

PARENT, STARTED = 1, 19  # fields of /proc/PID/stat behind the name
Process = tuple[int, str]  # its id, and when it started: ids come again


def descendants() -> Collection[Process]:
    """Of this process. None where there is no /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        if fields := _fields(int(path.parent.name)):
            parents[int(path.parent.name)] = int(fields[PARENT]), fields[STARTED]
    found: dict[int, str] = {}
    generation = {os.getpid()}
    while generation:
        generation = {pid for pid, (parent, _) in parents.items() if parent in generation} - found.keys()
        found |= {pid: parents[pid][1] for pid in generation}
    return tuple(found.items())


def end(processes: Collection[Process]) -> None:
    """Those of them that are still there."""
    for pid, started in processes:
        fields = _fields(pid)
        if fields and fields[STARTED] == started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fields(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
