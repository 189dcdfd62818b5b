"""Registries, and why a call does not get through."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from fakes import make_base
from make_adapters import make_adapter

from adapters_cache.sharing.artefact import describe
from adapters_cache.sharing.folder import FolderRegistry
from server.doctor import peer, remote
from server.doctor.finding import State
from server.doctor.peer import Peer, Speaks


def test_a_registry_that_lists_something_is_well(tmp_path: Path) -> None:
    make_adapter(tmp_path / "reviews", make_base(hidden_size=32, num_layers=2))
    (tmp_path / "registry").mkdir()
    empty = remote.registry(str(tmp_path / "registry"))
    assert empty.state is State.WARNING and "adapterd push" in empty.remedy
    FolderRegistry(str(tmp_path / "registry")).push(tmp_path / "reviews", describe(tmp_path / "reviews", "reviews"))
    assert remote.registry(str(tmp_path / "registry")).state is State.OK


def test_a_hub_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "list_models", lambda self, **filters: never.wait())
    monkeypatch.setattr(remote, "REGISTRY_TIMEOUT_S", 0.05)
    found = remote.registry("hub:organization")
    never.set()
    assert found.state is State.PROBLEM and "hub:organization: no answer within 0.05 s" in found.message
    assert "(cache.registries)" in found.remedy


def test_a_hub_is_asked_for_one_adapter_of_the_organization(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def list_models(self: object, **filters: Any) -> list[object]:
        asked.append(filters)
        return []

    monkeypatch.setattr(huggingface_hub.HfApi, "list_models", list_models)
    assert remote.registry("hub:organization").state is State.WARNING
    assert [(filters["author"], filters["limit"]) for filters in asked] == [("organization", 1)]


@pytest.mark.parametrize(
    ("speaks", "variable", "says"),
    [
        (Speaks.NOTHING, "", "start one with adapterd serve"),
        (Speaks.HTTP, "", "not the gRPC port"),
        (Speaks.UNKNOWN, "", "name another with --server"),
        (Speaks.TLS, "", "set ADAPTERD_CA"),
        (Speaks.TLS, "ADAPTERD_CA", "ADAPTERD_CERTIFICATE and ADAPTERD_KEY"),
        (Speaks.CLEAR, "ADAPTERD_CERTIFICATE", "unset ADAPTERD_CERTIFICATE"),
    ],
)
def test_each_reason_has_its_remedy(monkeypatch: pytest.MonkeyPatch, speaks: Speaks, variable: str, says: str) -> None:
    for name in ("ADAPTERD_CA", "ADAPTERD_CERTIFICATE"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "file.pem")
    monkeypatch.setattr(remote, "look_at", lambda host, port: Peer(speaks))
    found = remote.unreachable("host.example:50051")
    assert found is not None and "host.example:50051" in found[0] and says in found[1]


def test_what_cannot_be_told_from_outside_is_left_to_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTERD_CA", raising=False)
    monkeypatch.delenv("ADAPTERD_CERTIFICATE", raising=False)
    monkeypatch.setattr(remote, "look_at", lambda host, port: Peer(Speaks.CLEAR))
    assert remote.unreachable("host.example:50051") is None
    assert remote.unreachable("unix:/run/adapterd.sock") is None and peer.address_of("x") is None
