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
    _call([sys.executable, "-m", "venv", "--clear", str(home)], folder / f"{name}-{LOG}", tell)
    _call([str(python), "-m", "pip", "install", "-r", str(wanted)], folder / f"{name}-{LOG}", tell)
    (home / STAMP).write_text(stamp)
    return python


def _stamp(requirements: Path) -> str:
    """Of what is installed, and for which Python."""
    return f"{platform.python_version()} {hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"


def _call(command: Sequence[str], log: Path, tell: Tell) -> None:
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        assert process.stdout is not None
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        with process:
            for line in process.stdout:
                output.write(line)
                tell(line.strip())
        timer.cancel()
    if process.returncode:
        errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
        raise PeerFailed(f"not installed: {errors[-1] if errors else last_line(log.read_text())}")
