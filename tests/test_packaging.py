"""What installs this: the constraints cover the requirements, and the Dockerfile uses them."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
OURS = ("adapterd", "server", "adapters_cache", "training", "loadtest")
BROUGHT_ALONG = ("huggingface_hub", "tokenizers", "click")  # by transformers, by typer
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pins = {canonical(name): version for name, version in PINS.items()}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *chain(*extras.values())]:
        requirement = Requirement(text)
        if str(requirement.specifier).startswith("=="):  # exact already: torch's CUDA build brings its own triton
            continue
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), text


def test_pins_fit_every_build_of_a_version() -> None:
    assert not [name for name, version in PINS.items() if "+" in version]


def test_images_install_by_the_constraints_and_do_not_run_as_root() -> None:
    installs = re.findall(r"pip install .*", DOCKERFILE)
    assert installs and all("-c constraints.txt" in line for line in installs)
    stages = dict(re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.M))
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.M)) and stages
    assert re.search(r"^USER (?!0\b|root\b)\S+$", DOCKERFILE, re.M)


def test_everything_the_dockerfile_copies_is_let_through_and_exists() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for sources in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert source.split("/")[0] in let_through, source
            assert (ROOT / source).exists(), source


def test_every_library_that_is_imported_is_required() -> None:
    """But for the workers of peers: scripts that run in environments of their own."""
    extras = PROJECT["optional-dependencies"]
    required = {canonical(Requirement(text).name) for text in chain(PROJECT["dependencies"], *extras.values())}
    homes = packages_distributions()
    for path in (path for package in OURS for path in (ROOT / package).rglob("*.py") if path.parent.name != "workers"):
        for name in set(re.findall(r"^ *(?:from|import) (\w+)", path.read_text(), re.M)):
            if name not in {*sys.stdlib_module_names, *OURS, *BROUGHT_ALONG}:
                assert required & {canonical(home) for home in homes[name]}, f"{path.name} imports {name}"
