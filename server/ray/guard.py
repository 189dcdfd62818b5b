"""`python -m server.ray.guard SECONDS FOLDER COMMAND ...`: adapterd, which stops when the pipe on its stdin ends.

The pipe's other end is the parent's, and the system closes it however the parent ends. The stop is that of SIGTERM:
what was accepted is answered. After SECONDS the process ends whatever it does. FOLDER is removed with it.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import threading
import time

CHUNK_BYTES = 4096


def watch_stdin(limit_s: float, folder: str) -> None:
    """Blocks."""
    while os.read(sys.stdin.fileno(), CHUNK_BYTES):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(limit_s)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    seconds, own_folder = float(sys.argv.pop(1)), sys.argv.pop(1)
    threading.Thread(target=watch_stdin, args=(seconds, own_folder), daemon=True).start()
    try:
        runpy.run_module("server", run_name="__main__")
    finally:
        shutil.rmtree(own_folder, ignore_errors=True)
