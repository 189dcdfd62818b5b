"""`python -m loadtest.faults serve ...`: a server in which faults happen that no command of this machine can make.

The folder FAULTS is looked into while it runs: a file `stall-disk` lets every read of the disk tier hang.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from adapters_cache.disk import DiskTier
from server.core import Adapter

VARIABLE = "FAULTS"
STALL = "stall-disk"
LOOK_S = 0.02


def install(folder: Path) -> None:
    get = DiskTier.get

    def stalling_get(self: DiskTier, digest: str) -> Adapter | None:
        while (folder / STALL).exists():
            time.sleep(LOOK_S)
        return get(self, digest)

    DiskTier.get = stalling_get  # type: ignore[method-assign]


if __name__ == "__main__":
    from server.__main__ import main

    install(Path(os.environ[VARIABLE]))
    main()
