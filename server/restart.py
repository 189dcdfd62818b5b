"""After a fault that stays with the process: the same command in a new one, of the same id."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import NoReturn

VARIABLE = "ADAPTERD_FAULTS"  # in a row, for the process that comes after this one
CALM_S = 300.0  # a process that lived so long starts the count anew
MAX_WAIT_S = 60.0
STARTED = time.monotonic()

log = logging.getLogger("adapterd")


def start_again() -> NoReturn:
    """Replace this process. At once after the first fault; after faults in a row the later, a minute at most."""
    is_calm = time.monotonic() - STARTED > CALM_S
    count = 0 if is_calm else int(os.environ.get(VARIABLE, "0"))
    wait_s = min(MAX_WAIT_S, 2.0**count - 1)
    os.environ[VARIABLE] = str(count + 1)
    log.critical("starting again in %g s, fault %d in a row", wait_s, count + 1)
    time.sleep(wait_s)
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # ports, and pipes to children, who end with them
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
