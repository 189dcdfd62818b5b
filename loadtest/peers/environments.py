"""A virtual environment per foreign library, made once and kept until its requirements change."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.peers.process import PeerFailed, last_line

DEFAULT_FOLDER = Path.home() / ".cache" / "adapterd" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
STAMP, LOG = ".requirements", "install.log"
TIMEOUT_S = 3600.0  # for what pip does for one environment
Tell = Callable[[str], None]


def python_of(name: str, folder: Path, tell: Tell, requirements: Path = REQUIREMENTS) -> Path:
    """The interpreter of an environment with exactly `requirements/NAME.txt`, installed if need be.

    tell    hears what is being done
    Raises PeerFailed with the installer's last word.
    """
    wanted = requirements / f"{name}.txt"
    home = folder / name
    python = home / "bin" / "python"
    stamp = _stamp(wanted)
    if python.exists() and (home / STAMP).exists() and (home / STAMP).read_text() == stamp:
        return python
    home.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}-{LOG}"
    _call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)], log, tell)
    _call([sys.executable, "-m", "pip", "--python", str(python), "install", "-r", str(wanted)], log, tell)
    (home / STAMP).write_text(stamp)
    return python


def _stamp(requirements: Path) -> str:
    """Of what is installed, and for which Python."""
    return f"{platform.python_version()} {hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"


def _call(command: Sequence[str], log: Path, tell: Tell) -> None:
    """Run to the end, its output in `log` too."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    timer = threading.Timer(TIMEOUT_S, process.kill)
    timer.start()
    try:
        with process, log.open("w") as output:
            assert process.stdout is not None
            for line in process.stdout:
                output.write(line)
                tell(line.strip())
    finally:
        process.kill()
        timer.cancel()
    if process.returncode:
        said = log.read_text()
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        raise PeerFailed(f"not installed: {errors[-1] if errors else last_line(said)}")
