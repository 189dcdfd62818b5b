"""The versions that adapterd runs with, each set tried in an environment of its own: `make matrix`.

Every row installs what it says beside the project and runs the tests that touch its libraries most. It takes minutes a
row and gigabytes for a while; `python tests/matrix.py --only NAME` tries one again. A row that cannot be made says why,
in its place in the table. Exit status 1: tests of a row failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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
NEEDED = {"accelerate", "hypothesis", "openai", "pytest", "pytest-asyncio", "pytest-timeout", "tritonclient", "trustme"}
SHOWN = ("torch", "transformers", "protobuf", "grpcio", "grpcio-health-checking", "numpy")
HEAD = """# Compatibility

What the project was tried with. `make matrix` writes this page; every row is an environment of its own, with the tests
of the wire, the engine, recorded answers and training on a CPU. A row that could not be made says why. "health" is
grpcio-health-checking, whose stubs ask for a protobuf at least as new as theirs; torch without `+cpu` is a CUDA build.

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


STUBS = ("protobuf", "grpcio-health-checking", "grpcio-reflection", "grpcio-status", "tritonclient")
NEW_STUBS = ("protobuf>=7.35.1,<8", "grpcio-health-checking>=1.83", "grpcio-reflection>=1.83", "grpcio-status>=1.83")
TRITON_NEEDS = ("ml-dtypes", "python-rapidjson", "geventhttpclient", "aiohttp")
OLD = ("torch", "transformers", "huggingface_hub", "tokenizers", "setuptools")
NEW = ("transformers", "huggingface_hub", "tokenizers")
ROWS = (
    Row("pinned", "3.11"),
    Row("pinned, Python 3.12", "3.12"),
    Row("pinned, Python 3.13", "3.13"),
    Row("protobuf 7", "3.11", STUBS, (*NEW_STUBS, *TRITON_NEEDS), ("tritonclient==2.73.0",)),
    Row("oldest torch and transformers", "3.11", OLD, ("torch==2.11.0", "transformers==5.17.0")),
    Row("newest transformers", "3.11", NEW, ("transformers",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the row of this name; the others of the table stay as they are")
    only = parser.parse_args().only
    rows = [row for row in ROWS if only in (None, row.name)]
    if not rows:
        sys.exit(f"no row is called {only!r}; there are {', '.join(row.name for row in ROWS)}")
    results = []
    with Progress() as bar:
        task = bar.add_task("", total=len(rows))
        for row in rows:
            bar.update(task, description=row.name)
            results.append(_tried(row))
            bar.print(results[-1].line)
            bar.advance(task)
    _write(results)
    sys.exit(any(result.is_failed for result in results))


@dataclass(frozen=True, slots=True)
class Result:
    """versions   Python's, then those of SHOWN; empty where the row could not be made
    said          by its tests, or why there are none
    """

    row: Row
    versions: Sequence[str]
    said: str
    is_failed: bool = False

    @property
    def line(self) -> str:
        versions = self.versions or (self.row.python, *([""] * len(SHOWN)))
        return f"| {' | '.join((self.row.name, *versions, self.said))} |"


def _tried(row: Row) -> Result:
    python = shutil.which(f"python{row.python}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        return Result(row, (), f"not run: no python{row.python} on PATH")
    with tempfile.TemporaryDirectory(prefix="adapterd-matrix-") as name:
        folder = Path(name)
        try:
            versions = _install(row, python, folder)
        except subprocess.CalledProcessError as error:
            print(error.stderr, file=sys.stderr)
            return Result(row, (), f"not run: {_reason(error.stderr)}")
        said, is_failed = _tested(folder)
        return Result(row, versions, said, is_failed)


def _write(results: Sequence[Result]) -> None:
    """Rows that were not tried stay as they are."""
    before = TABLE.read_text().splitlines() if TABLE.exists() else []
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in before if line.startswith("| ")}
    lines |= {result.row.name: result.line for result in results}
    TABLE.write_text(HEAD + "\n".join(lines[row.name] for row in ROWS if row.name in lines) + "\n")


def _reason(log: str) -> str:
    """The first error that pip told, fit for a cell."""
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    return (errors or log.strip().splitlines() or ["it cannot be installed"])[0].replace("|", "\\|")


def _install(row: Row, python: str, folder: Path) -> list[str]:
    """Versions as the table shows them. Raises CalledProcessError."""
    free = set(map(canonicalize_name, row.free))
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if canonicalize_name(line.partition("==")[0]) not in free
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    _run([python, "-m", "venv", str(folder / "venv")])
    own = str(folder / "venv/bin/python")
    pip = [own, "-m", "pip", "install", "--quiet", "--no-compile"]
    pinned = [*pip, "-c", str(constraints)]
    torch = next((pin for pin in row.pins if pin.startswith("torch")), "torch")
    _run([*pinned, torch])
    _run([*pinned, "-e", f"{ROOT}[demo]", *_dev(row), *row.pins])
    for package in row.loose:
        _run([*pip, "--no-deps", package])
    listed = _run([own, "-m", "pip", "list", "--format", "json"])
    versions = {canonicalize_name(one["name"]): one["version"] for one in json.loads(listed)}
    exact = _run([own, "-c", "import platform; print(platform.python_version())"]).strip()
    return [exact, *(versions.get(name, "") for name in SHOWN)]


def _dev(row: Row) -> list[str]:
    """What the tests need, as the project asks for it; without what the row brings itself."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    own = {Requirement(package).name for package in row.loose}
    return [text for text in extra if Requirement(text).name in NEEDED and Requirement(text).name not in own]


def _tested(folder: Path) -> tuple[str, bool]:
    """What pytest says last, and whether anything failed."""
    started = time.monotonic()
    # That one library calls what it takes from another deprecated is no failure of a row.
    quiet = ("-q", "-p", "no:cacheprovider", "-W", "default::DeprecationWarning")
    command = [str(folder / "venv/bin/python"), "-m", "pytest", *quiet, *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-4000:], file=sys.stderr)
    last = (done.stdout.strip().splitlines() or [f"exit status {done.returncode}"])[-1].strip("= ").partition(" in ")[0]
    return f"{last}, {time.monotonic() - started:.0f} s", done.returncode != 0


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
