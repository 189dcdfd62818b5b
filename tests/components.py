"""Programs that tests run and pip does not have: from PATH, or out of Debian's archive, without root.

`python tests/components.py` has all of them ready, so that no test waits for a download.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "components"
PLACES = ("usr/bin", "usr/sbin")
LISTS = "apt"
TIMEOUT_S = 300
ALL = (("prometheus", "prometheus"), ("prometheus", "promtool"))  # packages and their programs


def component(package: str, program: str, needs: Sequence[str] = ()) -> Path:
    """A program of a Debian package. What cannot be had fails whoever asks: nothing is skipped.

    needs   further packages, its libraries say, that are unpacked into the same tree
    raises RuntimeError with what apt said
    """
    if found := shutil.which(program):
        return Path(found)
    folder = unpacked(package, needs)
    for place in PLACES:
        if (path := folder / place / program).exists():
            return path
    raise RuntimeError(f"Debian's package {package} has no program {program}")


def unpacked(package: str, needs: Sequence[str] = ()) -> Path:
    """The tree of a Debian package's files. Raises RuntimeError."""
    folder = FOLDER / package
    if not (folder / "done").exists():
        _unpack([package, *needs], folder)
    return folder


def _unpack(packages: Sequence[str], folder: Path) -> None:
    """Download and unpack. Nothing is installed, and no script of a package runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _download(packages, folder)
        for archive in folder.glob("*.deb"):
            _run(["dpkg-deb", "--extract", archive.name, "."], folder)
            archive.unlink()
        shutil.rmtree(folder / LISTS, ignore_errors=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise RuntimeError(f"{', '.join(packages)}: neither on PATH nor to be had from apt: {said}") from error
    (folder / "done").touch()


def _download(packages: Sequence[str], folder: Path) -> None:
    """By the system's lists of packages; where there are none, or they are too old, by lists of our own."""
    for options in _lists(folder):
        try:
            if options:
                _run(["apt-get", "--quiet=2", *options, "update"], folder)
            _run(["apt-get", "--quiet=2", *options, "download", *packages], folder)
            return
        except subprocess.CalledProcessError:
            if options:
                raise


def _lists(folder: Path) -> Iterator[list[str]]:
    yield []
    own = folder / LISTS
    for name in ("lists/partial", "cache/archives/partial"):
        (own / name).mkdir(parents=True)
    settings = {"Dir::State::lists": own / "lists", "Dir::Cache": own / "cache"}
    if os.geteuid() == 0:
        settings["APT::Sandbox::User"] = Path("root")  # another user may not write here
    yield [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    try:
        print("\n".join(str(component(*names)) for names in ALL))
    except RuntimeError as error:
        sys.exit(str(error))
