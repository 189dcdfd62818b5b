"""Folders that appear, and change, as a whole."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PUBLISH_LOCK = ".publish.lock"  # in a folder that adapters are published to: held by who changes them
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def folder_beside(into: Path) -> Iterator[Path]:
    """A new folder on the same file system as `into`, to be filled and put in place; what is left of it is removed.

    Its name begins with a dot, so that no adapter is looked for in it.
    """
    aside = _made_beside(into)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _made_beside(into: Path) -> Path:
    while True:
        into.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # somebody has removed the parent, which was empty, since
            return Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))


def put_in_place(aside: Path, into: Path) -> bool:
    """Give `into` the content of `aside`, which has what was there before afterwards; whether there was anything.

    Whoever looks finds the one or the other: on Linux the two names are exchanged in one step, elsewhere there is a
    moment without either.
    """
    aside.chmod(0o755)
    if not into.exists():
        aside.rename(into)
        return False
    if not _exchanged(aside, into):
        before = aside.with_name(f"{aside.name}.before")
        into.rename(before)
        aside.rename(into)
        before.rename(aside)
    return True


def _exchanged(one: Path, other: Path) -> bool:
    """False where the system or the file system cannot do it."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform.startswith("linux") else None
    if renameat2 is None:
        return False
    return int(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)) == 0
