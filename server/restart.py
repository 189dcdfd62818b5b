"""After a fault that stays with the process: the same command in a new one, of the same id."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from typing import NoReturn

VARIABLE = "ADAPTERD_FAULTS"  # in a row, for the process that comes after this one
CALM_S = 300.0  # a process that lived so long starts the count anew
MAX_WAIT_S = 60.0
STARTED = time.monotonic()

log = logging.getLogger("adapterd")


def back_off_s() -> float:
    """What to wait before: nothing after the first fault; after faults in a row the longer, a minute at most."""
    wait_s = min(MAX_WAIT_S, 2.0 ** min(_num_before(), 6) - 1)
    log.critical("starting again in %g s, fault %d in a row", wait_s, _num_before() + 1)
    return wait_s


def start_again() -> NoReturn:
    """Replace this process."""
    os.environ[VARIABLE] = str(_num_before() + 1)
    sys.stdout.flush()
    sys.stderr.flush()
    for name in os.listdir("/proc/self/fd"):  # ports, and pipes to children, who end with them
        if int(name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(name), False)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def bury_children() -> None:
    """Of the process that this one was before: they have ended, and wait for their parent to take notice."""
    if _num_before():
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _num_before() -> int:
    """Faults in a row before this one."""
    text = os.environ.get(VARIABLE, "")
    is_calm = time.monotonic() - STARTED > CALM_S
    return int(text) if text.isdecimal() and len(text) < 9 and not is_calm else 0
