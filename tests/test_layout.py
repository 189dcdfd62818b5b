"""The import rules of the code base, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("adapterd", "server", "adapters_cache", "training", "loadtest")

# Imports flow one way: a module may import its own layer's package and any layer before it. Layers of one line are
# siblings: they never import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("server.errors",),
    ("server.primitives", "server.config", "server.composition"),
    ("server.core", "server.expression", "server.usage"),
    (
        "server.backoff",
        "server.cores",
        "server.metrics",
        "server.memory",
        "server.folders",
        "server.threads",
        "server.ledger",
        "server.recent",
        "server.replicas",
        "server.watched",
    ),
    ("server.totals", "server.tracing", "server.tenants", "server.audit", "server.restart"),
    (
        "server.admission",
        "server.tokenizer",
        "server.postprocess",
        "server.scheduler",
        "server.model",
        "adapters_cache",
    ),
    ("server.words", "server.stopwatch", "server.difference", "server.oip"),
    ("server.canary",),
    ("server.results", "server.cases"),
    ("server.case_rows",),
    ("server.compare", "server.engine"),
    ("server.pipeline",),
    ("server.api", "server.verify", "server.probe"),
    ("server.fronts", "server.http"),
    ("server.app", "server.record"),
    ("server.doctor", "server.top"),
    ("server.cli.settings",),  # a configuration of texts, whoever has them
    ("server.ray",),
    ("server.cli",),
    ("server.__main__",),
)

# Who may import what is heavy or bound to one place; the rest of serving stays free of it.
ONLY_IN = {
    "grpc": ("adapterd", "server.api", "server.cli", "loadtest"),
    "grpc_health": ("server.api", "loadtest"),
    "grpc_reflection": ("server.api",),
    "grpc_status": ("server.api",),
    "torch": (
        "server.model",
        "server.memory",
        "server.verify",
        "server.record",
        "server.app",
        "server.doctor",
        "adapters_cache",
        "training",
        "loadtest",
    ),
    "ray": ("server.ray",),
    "prometheus_client": ("server.metrics", "server.totals", "server.usage", "server.http", "server.top"),
}


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _layer(module: str) -> tuple[int, str] | None:
    for level, names in enumerate(LAYERS):
        for name in names:
            if _is_in(module, name):
                return level, name
    return None


def _modules() -> Iterator[tuple[str, Path]]:
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not (_is_in(module, "adapterd.v1") or _is_in(module, "adapterd.oip.v2")):  # generated
                yield module, path


def imports_of(source: str) -> set[str]:
    """Every module that a source imports anywhere in it; `from a import b` counts as both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def violations(module: str, imported: set[str]) -> Iterator[str]:
    for other in sorted(imported):
        if _goes_up(module, other):
            yield f"{module} imports {other}: imports flow one way"
        for package, places in ONLY_IN.items():
            if _is_in(other, package) and not any(_is_in(module, place) for place in places):
                yield f"{module} imports {other}: only {', '.join(places)} may"
        if _is_in(module, "adapterd") and _is_ours(other) and not _is_in(other, "adapterd"):
            yield f"{module} imports {other}: the client needs nothing of the server"
        if _is_in(other, "training") and _is_in(module, "server") and not _is_in(module, "server.cli"):
            yield f"{module} imports {other}: serving never imports training"
        if _is_in(module, "adapters_cache") and _is_in(other, "adapterd"):
            yield f"{module} imports {other}: the cache knows nothing of the wire"


def _is_ours(module: str) -> bool:
    return any(_is_in(module, package) for package in OURS)


def _goes_up(module: str, other: str) -> bool:
    mine, theirs = _layer(module), _layer(other)
    return bool(mine and theirs and mine[1] != theirs[1] and theirs[0] >= mine[0])


MODULES = dict(_modules())


@pytest.mark.parametrize("module", MODULES)
def test_imports_flow_one_way(module: str) -> None:
    assert list(violations(module, imports_of(MODULES[module].read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("server.scheduler.queues", "from server.model import runner"),
        ("server.errors", "import server.config"),
        ("server.core", "import torch.nn"),
        ("server.pipeline", "def f():\n    import grpc"),
        ("server.model.runner", "from prometheus_client import Gauge"),
        ("server.api.convert", "from server import app"),
        ("adapterd.client", "from server.core import Reply"),
        ("server.app", "import training.train"),
        ("adapters_cache.host", "from server.scheduler.scheduler import Scheduler"),
    ],
)
def test_each_rule_finds_its_violation(module: str, source: str) -> None:
    assert list(violations(module, imports_of(source)))


def test_every_module_of_the_server_has_a_layer() -> None:
    unplaced = [module for module in MODULES if _is_in(module, "server") and _layer(module) is None]
    assert unplaced == ["server"]
