"""A real server as a child."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
import trustme
from make_bases import save_base
from make_tokenizer import save_tokenizer

from adapterd import Client
from server.config import ServerConfig
from server.ray.child import Child, Health, advertised
from server.ray.plan import Plan
from server.ray.scaling import BUSY, COMPUTE, NUM_WAITED, TOKENS, TOKENS_PER_S, WAITED, load_between
from server.top.scrape import PREFIX


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(save_base(tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture(autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where children have theirs."""
    for variable in ("ADAPTERD_CA", "ADAPTERD_CERTIFICATE", "ADAPTERD_KEY"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path_factory.mktemp("folders")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_child_serves_tells_its_metrics_and_answers_before_it_ends(base: str, folders: Path) -> None:
    plan = Plan({"model.base": base, "model.device": "cpu", "scheduler.max_batch_tokens": 1024})
    child = Child(plan.config(), plan.child_settings())
    try:
        before = child.metrics()
        with Client(f"127.0.0.1:{child.port}") as client:
            client.predict("base", "a text")
        after = child.metrics()
        named = {f"{PREFIX}{name}" for name in (COMPUTE, TOKENS, WAITED, NUM_WAITED)}
        assert named <= after.samples.keys()  # the names that scaling looks for
        load = load_between(before, after)
        assert load[BUSY] > 0 and load[TOKENS_PER_S] > 0
        assert child.health() is Health.SERVING
        os.kill(child.pid, signal.SIGSTOP)
        try:
            assert child.health(0.2) is Health.SILENT  # late, which is no reason to take it off the list
        finally:
            os.kill(child.pid, signal.SIGCONT)
    finally:
        child.stop(30)
    assert child.health() is Health.GONE and child.exit_code == 0
    assert not list(folders.iterdir())


def test_a_server_that_takes_too_long_is_told_with_its_last_word(folders: Path) -> None:
    with pytest.raises(RuntimeError, match="took longer than 0 s before it served:\n.*refused"):
        Child(ServerConfig(), {"model.base": "/no-such-base"}, start_s=0)
    assert not list(folders.iterdir())


@pytest.mark.parametrize(
    ("trusted", "named", "says"),
    [
        ("", "127.0.0.1", "ADAPTERD_CA is not set"),
        ("other", "127.0.0.1", "verify failed.*ADAPTERD_CA has to name"),
        ("own", "elsewhere.example", "IP address mismatch.*has to name 127.0.0.1"),
    ],
)
def test_a_server_whose_certificate_keeps_its_worker_out_is_told_at_once(
    trusted: str, named: str, says: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = trustme.CA()
    certificate = own.issue_cert(named)
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    files = {"api.tls_certificate": str(tmp_path / "chain.pem"), "api.tls_key": str(tmp_path / "key.pem")}
    if trusted:
        (own if trusted == "own" else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("ADAPTERD_CA", str(tmp_path / "ca.pem"))
    plan = Plan({"model.base": base, "model.device": "cpu", "scheduler.max_batch_tokens": 1024, **files})
    with pytest.raises(RuntimeError, match=f"does not let its own worker in before it served:\n.*{says}"):
        Child(plan.config(), plan.child_settings())


def test_a_server_that_cannot_start_tells_why() -> None:
    with pytest.raises(RuntimeError, match="ended with code 1 before it served:\n(.|\n)*no-such-base"):
        Child(ServerConfig(), {"model.base": "/no-such-base", "model.device": "cpu"})


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "10.0.0.7"), ("[::]", "10.0.0.7"), ("10.0.0.9", "10.0.0.9")],
)
def test_callers_are_told_an_address_that_they_reach(host: str, address: str) -> None:
    assert advertised(host, "10.0.0.7") == address
