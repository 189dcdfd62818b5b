"""Python and the libraries."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError

import pytest

from server.doctor import environment
from server.doctor.finding import State


@pytest.fixture
def required(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our package requires, whatever this environment was installed with."""
    wanted = ["protobuf>=6.33.5,<8", "grpcio>=1.81.1", 'accelerate>=1.1; extra == "train"']
    monkeypatch.setattr(environment, "requires", lambda name: wanted)


def test_this_environment_is_well() -> None:
    for check in (environment.python_version, environment.stubs, environment.torch_build, environment.clock):
        assert check().state is State.OK


def test_an_old_and_a_missing_library_are_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, required: None
) -> None:
    def version(name: str) -> str:
        if name == "grpcio":
            raise PackageNotFoundError(name)
        return "5.29.1"

    monkeypatch.setattr(environment, "version", version)
    found = environment.libraries()
    assert (found.name, found.state) == ("libraries", State.PROBLEM)
    assert "protobuf 5.29.1 is not <8,>=6.33.5" in found.message and "grpcio is not installed" in found.message
    assert found.remedy == "pip install 'protobuf<8,>=6.33.5' 'grpcio>=1.81.1'"


def test_libraries_of_extras_are_not_asked_for(monkeypatch: pytest.MonkeyPatch, required: None) -> None:
    monkeypatch.setattr(environment, "version", lambda name: "7.0.0")
    assert environment.libraries().message == "2 requirements are met"


def test_a_python_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "metadata", lambda name: {"Requires-Python": ">=3.99"})
    found = environment.python_version()
    assert found.state is State.PROBLEM and "is not >=3.99" in found.message and "make PYTHON=" in found.remedy


def test_without_an_installation_the_requirements_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "requires", requires)
    found = environment.libraries()
    assert found.state is State.PROBLEM and "make install" in found.remedy


def test_stubs_that_do_not_load_are_told(required: None) -> None:
    found = environment.stubs(["server.no_such_module"])
    assert found.state is State.PROBLEM and "no_such_module" in found.message
    assert found.remedy == "pip install --upgrade 'protobuf<8,>=6.33.5' 'grpcio>=1.81.1'"


def test_a_clock_from_before_the_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    found = environment.clock()
    assert found.state is State.WARNING and "1970-01-01" in found.message and "timedatectl" in found.remedy
