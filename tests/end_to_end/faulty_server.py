"""`adapterd serve` whose device stops answering when the file FAULT names exists. Run as a program by tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from server.__main__ import main
from server.core import Batch
from server.errors import DeviceFault
from server.model.runner import Runner


def break_device() -> None:
    launch, fault = Runner.launch, Path(os.environ["FAULT"])

    def launch_or_fail(self: Runner, batch: Batch) -> object:
        if fault.exists():
            fault.unlink()  # the next process finds the device well
            raise DeviceFault("the device failed and the server starts again; send the request again")
        return launch(self, batch)

    Runner.launch = launch_or_fail  # type: ignore[assignment]


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    break_device()
    main()
