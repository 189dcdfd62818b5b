"""A folder of the disk tier for each replica: one server's own, and warm for the replica that takes its place."""

from __future__ import annotations

import fcntl
import os
from itertools import count
from pathlib import Path

from server.errors import InvalidInput


def claimed(parent: Path) -> tuple[Path, int]:
    """The first sub-folder that no server of this machine has, and a descriptor that holds it while it is open.

    Raises InvalidInput for a folder that cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in count():
            descriptor = os.open(parent / f"replica-{number}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            return parent / f"replica-{number}", descriptor
    except OSError as error:
        raise InvalidInput(f"disk_path {str(parent)!r} cannot be written: {error.strerror}") from error
    raise AssertionError("there is always another number")
