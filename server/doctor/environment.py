"""Python, the installed libraries, and whether they work with each other."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from server.doctor.finding import Finding, ok, problem, warning

OURS = "adapterd"
STUBS = (
    *(f"adapterd.v1.{name}_{kind}" for name in ("inference", "adapters", "training") for kind in ("pb2", "pb2_grpc")),
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha.reflection_pb2_grpc",
    "grpc_status.rpc_status",
)
CLOCK_SLACK_S = 86_400.0  # files may come from a machine whose clock was a little ahead


def python_version() -> Finding:
    found = platform.python_version()
    try:
        wanted = metadata(OURS)["Requires-Python"] or ""
    except PackageNotFoundError:
        wanted = ""  # which the libraries' check tells
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return problem(
            "python",
            f"Python {found} is not {wanted}",
            f"install adapterd with a Python {wanted}: make PYTHON=python3.12 install",
        )
    return ok("python", f"Python {found}")


def libraries() -> Finding:
    """What is installed against what our own package requires."""
    required = _requirements()
    if not required:
        return problem(
            "libraries",
            "adapterd is not installed in this Python, so its requirements are not known",
            "make install, or: pip install .",
        )
    wrong = {str(requirement): what for requirement in required if (what := _mismatch(requirement))}
    if wrong:
        wanted = " ".join(f"'{requirement}'" for requirement in wrong)
        return problem("libraries", "; ".join(wrong.values()), f"pip install {wanted}")
    return ok("libraries", f"{len(required)} requirements are met")


def _requirements() -> list[Requirement]:
    """Those without an extra; none where we are not installed."""
    try:
        found = [Requirement(text) for text in requires(OURS) or ()]
    except PackageNotFoundError:
        return []
    return [own for own in found if own.marker is None or own.marker.evaluate({"extra": ""})]


def _mismatch(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} {found} is not {requirement.specifier}"


def stubs(modules: Sequence[str] = STUBS) -> Finding:
    """Generated code refuses to load beside libraries of other versions, each in its own way."""
    for name in modules:
        try:
            import_module(name)
        except Exception as error:
            wanted = [f"'{own}'" for own in _requirements() if own.name.startswith(("grpcio", "protobuf"))]
            return problem(
                "stubs",
                f"{name} does not load: {error}",
                f"pip install --upgrade {' '.join(wanted) or 'grpcio protobuf'}",
            )
    return ok("stubs", f"generated code loads with protobuf {version('protobuf')} and grpcio {version('grpcio')}")


def torch_build() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return problem("torch", f"torch does not load: {error}", "pip install --force-reinstall torch")
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    return ok("torch", f"torch {torch.__version__}, built {build}")


def clock() -> Finding:
    """Certificates, deadlines and the index go by it; before our own files were written it is wrong."""
    now, installed = time.time(), Path(__file__).stat().st_mtime
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < installed - CLOCK_SLACK_S:
        return warning(
            "clock",
            f"it says {shown}, which is before adapterd was installed",
            "set it: timedatectl set-ntp true, or hand the container its host's time",
        )
    return ok("clock", shown)
