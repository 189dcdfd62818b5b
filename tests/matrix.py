"""The versions that adapterd runs with, each set tried in an environment of its own: `make matrix`.

Every row installs what it says beside the project and runs the tests that touch its libraries most. It takes minutes a
row and gigabytes for a while; `python tests/matrix.py --only NAME` tries one, and rows whose Python is not there are
left out and said so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "compatibility.md"
TESTS = (
    "tests/end_to_end/test_mixed_equals_alone.py",
    "tests/end_to_end/test_oip.py",
    "tests/end_to_end/test_http.py",
    "tests/end_to_end/test_compositions.py",
    "tests/end_to_end/test_recorded_cases.py",
    "tests/adapterd",
    "tests/server/api",
    "tests/server/model/test_base.py",
    "tests/server/test_tokenizer.py",
    "tests/training/test_stitch.py",
)
SHOWN = ("torch", "transformers", "protobuf", "grpcio", "grpcio-health-checking", "numpy")
HEAD = """# Compatibility

What the project was tried with. `make matrix` runs this table again; every row is an environment of its own, with the
tests of the wire, the engine, recorded answers and training.

| set | Python | torch | transformers | protobuf | grpcio | health | numpy | tests |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, slots=True)
class Row:
    """free    pins of constraints.txt that do not count here
    pins       what is installed instead
    loose      installed last, whatever they require: a client that asks for an older protobuf runs with this one
    """

    name: str
    python: str
    free: Sequence[str] = ()
    pins: Sequence[str] = ()
    loose: Sequence[str] = ()


STUBS = ("protobuf", "grpcio-health-checking", "grpcio-reflection", "grpcio-status", "grpcio-tools", "tritonclient")
NEW_STUBS = ("protobuf>=7.35.1,<8", "grpcio-health-checking>=1.83", "grpcio-reflection>=1.83", "grpcio-status>=1.83")
OTLP = ("opentelemetry-proto", "opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-exporter-otlp-proto-common")
TRITON_NEEDS = ("ml-dtypes", "python-rapidjson", "geventhttpclient", "aiohttp")
OLD = ("torch", "transformers", "huggingface_hub", "tokenizers", "triton", "sympy")
ROWS = (
    Row("pinned", "3.11"),
    Row("pinned, Python 3.12", "3.12"),
    Row("pinned, Python 3.13", "3.13"),
    Row("protobuf 7", "3.11", (*STUBS, *OTLP), (*NEW_STUBS, *TRITON_NEEDS), ("tritonclient==2.73.0",)),
    Row("oldest torch and transformers", "3.11", OLD, ("torch==2.11.0", "transformers==5.17.0")),
    Row("newest transformers", "3.11", ("transformers",), ("transformers",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the row of this name, without writing the table")
    only = parser.parse_args().only
    rows = [row for row in ROWS if only in (None, row.name)]
    if not rows:
        sys.exit(f"no row is called {only!r}; there are {', '.join(row.name for row in ROWS)}")
    lines = []
    with Progress() as bar:
        task = bar.add_task("", total=len(rows))
        for row in rows:
            bar.update(task, description=row.name)
            lines.append(_line(row))
            bar.print(lines[-1])
            bar.advance(task)
    if only is None:
        TABLE.write_text(HEAD + "\n".join(lines) + "\n")
    if any("passed" not in line or "failed" in line for line in lines if "not here" not in line):
        sys.exit(1)


def _line(row: Row) -> str:
    python = shutil.which(f"python{row.python}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        return f"| {row.name} | {row.python} | | | | | | | not here |"
    with tempfile.TemporaryDirectory(prefix="adapterd-matrix-") as name:
        folder = Path(name)
        try:
            versions = _install(row, python, folder)
        except subprocess.CalledProcessError as error:
            return f"| {row.name} | {row.python} | | | | | | | cannot be installed: {error.stderr.strip()[-200:]} |"
        return f"| {row.name} | {' | '.join(versions)} | {_tested(folder)} |"


def _install(row: Row, python: str, folder: Path) -> list[str]:
    """Versions as the table shows them. Raises CalledProcessError."""
    free = {name.lower().replace("_", "-") for name in row.free}
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.partition("==")[0].lower().replace("_", "-") not in free
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    _run([python, "-m", "venv", str(folder / "venv")])
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "-c", str(constraints)]
    torch = next((pin for pin in row.pins if pin.startswith("torch")), "torch")
    _run([*pip, torch])
    left_out = {"tritonclient", "grpcio-tools", "triton"} | ({"opentelemetry"} if row.loose else set())
    _run([*pip, "-e", f"{ROOT}[demo]", *_dev(left_out if row.free else {"triton"}), *row.pins])
    for package in row.loose:
        _run([*pip[:-2], "--no-deps", package])
    listed = _run([*pip[:3], "list", "--format", "json"])
    versions = {one["name"].lower(): one["version"].partition("+")[0] for one in json.loads(listed)}
    exact = _run([str(folder / "venv/bin/python"), "-c", "import platform; print(platform.python_version())"]).strip()
    return [exact, *(versions.get(name, "") for name in SHOWN)]


def _dev(left_out: set[str]) -> list[str]:
    """What the tests need, without what the row brings in another version."""
    import tomllib

    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    return [text for text in extra if not any(text.startswith(name) for name in left_out)]


def _tested(folder: Path) -> str:
    started = time.monotonic()
    command = [str(folder / "venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
    last = done.stdout.strip().splitlines()[-1].strip("= ").partition(" in ")[0]
    return f"{last}, {time.monotonic() - started:.0f} s"


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
