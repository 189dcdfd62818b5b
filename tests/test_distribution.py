"""What is released: the wheel and the sdist have all their files, and run where nothing else is."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("adapterd", "server", "adapters_cache", "training", "loadtest")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOTH = f"adapterd-{PROJECT['version']}"
BUILD_S = 60
PREDICT = """
import sys
from adapterd import Client
with Client(sys.argv[1]) as client:
    print(client.predict("snips-intent", "play some jazz").results[0].classification.labels[0].label)
"""


def build(source: Path, into: Path, *arguments: str) -> None:
    """By the tools that are installed: no index is asked."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), *arguments, str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_S)


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("released")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(released: Path) -> Path:
    return released / f"{BOTH}-py3-none-any.whl"


@pytest.fixture(scope="session")
def sdist_names(released: Path) -> set[str]:
    with tarfile.open(released / f"{BOTH}.tar.gz") as archive:
        return {name.removeprefix(f"{BOTH}/") for name in archive.getnames()}


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files(*folders: str) -> set[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    names = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert names == files(*PACKAGES)
    assert {"adapterd/py.typed", "adapterd/v1/py.typed", "loadtest/page.html"} <= names


def test_the_sdist_makes_the_wheel_that_the_repository_makes(wheel: Path, tmp_path: Path) -> None:
    build(ROOT, tmp_path, "--wheel")
    assert contents(tmp_path / wheel.name) == contents(wheel)


def test_the_sdist_has_what_a_packager_needs(sdist_names: set[str]) -> None:
    kept = files("protos", "deploy", "docs", "examples", "tests") - files("deploy/secrets")
    assert kept - {name for name in kept if name.endswith(".html") and "benchmarks" in name} <= sdist_names
    assert {
        "constraints.txt",
        "Makefile",
        "Dockerfile",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    } <= sdist_names


def test_the_sdist_has_nothing_that_git_ignores(sdist_names: set[str]) -> None:
    for name in sdist_names:
        assert not re.match(r"\.git(/|$)|\.venv|build/|dist/|deploy/secrets/", name) and "__pycache__" not in name


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    found = contents(wheel)
    metadata = found[f"{BOTH}.dist-info/METADATA"].decode()
    assert f"\nVersion: {PROJECT['version']}\n" in metadata and "\nRequires-Python: >=3.11\n" in metadata
    assert metadata.count("\nRequires-Dist: ") >= len(PROJECT["dependencies"])
    assert b"adapterd = server.__main__:main" in found[f"{BOTH}.dist-info/entry_points.txt"]


def test_the_changelog_has_releases_from_the_newest_on_and_three_kinds_of_changes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *releases = re.findall(r"^## (.+)$", text, re.M)
    assert first == "Unreleased"
    found = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) \(\d{4}-\d\d-\d\d\)", release) for release in releases]
    versions = [tuple(map(int, release.groups())) for release in found if release]
    assert len(versions) == len(releases) and versions == sorted(versions, reverse=True)
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {"Added", "Changed", "Fixed"}
    if versions:
        assert PROJECT["version"] == ".".join(map(str, versions[0]))


# in an environment of its own


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The `bin` of an environment that has the wheel and what it requires, and nothing of the repository."""
    home = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [home / "bin/python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, f"{wheel}[demo]"], check=True)
    return home / "bin"


def bare() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """A folder outside of the repository with the demo's adapters."""
    shutil.copytree(ROOT / "examples/adapters", tmp_path / "adapters")
    return tmp_path


@pytest.fixture
def served(empty: Path, away: Path) -> Iterator[str]:
    command = [empty / "adapterd", "serve", "--adapters", "adapters", "--port", "0", "--http-port", "0"]
    with subprocess.Popen(command, cwd=away, env=bare(), stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        shown = []
        for line in server.stderr:
            shown.append(line)
            if found := re.search(r"grpc_port=(\d+)", line):
                break
        else:
            pytest.fail("the server ended before it served:\n" + "".join(shown))
        try:
            yield f"127.0.0.1:{found[1]}"
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
            assert server.wait(60) == 0


slow = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1200)]


class TestInAnEmptyEnvironment:
    pytestmark = slow

    def test_the_code_is_the_wheels(self, empty: Path, away: Path) -> None:
        program = "import json, server, adapterd; print(json.dumps([server.__file__, adapterd.__file__]))"
        done = subprocess.run(
            [empty / "python", "-c", program], cwd=away, env=bare(), capture_output=True, text=True, check=True
        )
        assert all(str(empty.parent) in path for path in json.loads(done.stdout))

    def test_every_verb_shows_its_help(self, empty: Path, away: Path) -> None:
        from server.cli import app

        verbs = [command.name for command in app.registered_commands]
        assert len(verbs) > 10
        for arguments in ([], *([verb] for verb in verbs)):
            command = [empty / "adapterd", *arguments, "--help"]
            done = subprocess.run(command, cwd=away, env=bare(), capture_output=True, text=True)
            assert done.returncode == 0 and "Usage" in done.stdout, done.stderr

    def test_it_serves_the_demo_adapters(self, empty: Path, away: Path, served: str) -> None:
        command = [empty / "adapterd", "predict", "sst2-sentiment", "a fine film", "--server", served]
        done = subprocess.run(command, cwd=away, env=bare(), capture_output=True, text=True)
        assert done.returncode == 0 and "positive" in done.stdout, done.stderr
        client = [empty / "python", "-c", PREDICT, served]
        assert subprocess.run(client, cwd=away, env=bare(), capture_output=True, text=True).stdout == "PlayMusic\n"

    def test_what_is_installed_fits_together(self, empty: Path) -> None:
        done = subprocess.run([empty / "python", "-m", "pip", "check"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
