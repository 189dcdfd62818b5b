from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from server.watched import Watched


@pytest.mark.parametrize("change", ["rewritten", "replaced", "touched", "removed"])
async def test_a_change_is_told_once(tmp_path: Path, change: str) -> None:
    path, told = tmp_path / "file", asyncio.Queue[int]()
    path.write_text("one")

    async def on_change() -> None:
        told.put_nowait(1)

    watched = Watched([path], 0.01, on_change)
    watched.start()
    await asyncio.sleep(0.05)
    assert told.empty()
    if change == "rewritten":
        path.write_text("other")
    elif change == "replaced":
        (tmp_path / "new").write_text("two")
        (tmp_path / "new").replace(path)
    elif change == "touched":
        os.utime(path, (1, 1))
    else:
        path.unlink()
    async with asyncio.timeout(10):
        await told.get()
    await asyncio.sleep(0.05)
    assert told.empty()
    await watched.stop()
