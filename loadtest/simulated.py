"""`python -m loadtest.simulated serve ...`: a server whose device takes the same time for every batch.

The file that SIMULATED names holds the seconds, and is looked at before each batch. The real engine computes the
answers, on a base so small that this takes a moment; then the device counts as busy for the rest of the time. So many
of them fit onto a few cores, and what surrounds the device shows: scheduling, caches, routing, the wire.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from server.core import Batch
from server.model.runner import Finish, Runner

VARIABLE = "SIMULATED"


def install(file: Path) -> None:
    launch = Runner.launch

    def slow_launch(self: Runner, batch: Batch) -> Finish:
        ends = time.monotonic() + float(file.read_text())
        finish = launch(self, batch)
        time.sleep(max(0.0, ends - time.monotonic()))
        return finish

    Runner.launch = slow_launch  # type: ignore[method-assign]


if __name__ == "__main__":
    from server.__main__ import main

    install(Path(os.environ[VARIABLE]))
    main()
