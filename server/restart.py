"""After a fault that stays with the process: the same command in a new one, of the same id."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from typing import NoReturn

from server.backoff import back_off_s

VARIABLE = "ADAPTERD_FAULTS"  # in a row, for the process that comes after this one
CALM_S = 300.0  # a process that lived so long starts the count anew
STARTED = time.monotonic()

log = logging.getLogger("adapterd")


def wait_s() -> float:
    """What to wait before: nothing after the first fault; after faults in a row the longer, a minute at most."""
    before = num_before()
    seconds = back_off_s(before) if before else 0.0
    log.critical("starting again in %g s, fault %d in a row", seconds, before + 1)
    return seconds


def start_again() -> NoReturn:
    """Replace this process."""
    os.environ[VARIABLE] = str(num_before() + 1)
    sys.stdout.flush()
    sys.stderr.flush()
    for name in os.listdir("/proc/self/fd"):  # ports, and pipes to children, who end with them
        if int(name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(name), False)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def bury_children() -> None:
    """Of the process that this one was before: they have ended, and wait for their parent to take notice."""
    if num_before():
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def num_before() -> int:
    """Faults in a row before this one."""
    text = os.environ.get(VARIABLE, "")
    is_calm = time.monotonic() - STARTED > CALM_S
    return int(text) if text.isdecimal() and len(text) < 9 and not is_calm else 0
