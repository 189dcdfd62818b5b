"""The tenants file, and TLS."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme

from server.config import ApiConfig
from server.doctor.certificates import tls, tls_client_ca, tls_key
from server.doctor.credentials import tenants
from server.doctor.finding import Finding, State
from server.tenants import digest_of

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def declared(folder: Path, text: str, **settings: str) -> Finding:
    (folder / "tenants.toml").write_text(text)
    (folder / "tenants.toml").chmod(0o600)
    return tenants(ApiConfig(tenants=str(folder / "tenants.toml"), **settings))  # type: ignore[arg-type]


ACME = f'[acme]\ncredentials = ["sha256:{digest_of("secret")}"]\nadapters = ["*"]\n'


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTERD_TOKEN", raising=False)


def test_a_tenants_file_is_read(tmp_path: Path) -> None:
    found = declared(tmp_path, ACME)
    assert found.state is State.OK and "acme" in found.message


@pytest.mark.parametrize("text", ["[acme", "[acme]\nadapters = 5", ACME + "secrets = 1"])
def test_a_broken_tenants_file_is_named(tmp_path: Path, text: str) -> None:
    found = declared(tmp_path, text)
    assert (found.name, found.state) == ("tenants", State.PROBLEM)
    assert str(tmp_path / "tenants.toml") in found.remedy and "--tenants (api.tenants)" in found.remedy


def test_a_missing_tenants_file_is_named(tmp_path: Path) -> None:
    found = tenants(ApiConfig(tenants=str(tmp_path / "none.toml")))
    assert found.state is State.PROBLEM and "none.toml cannot be read: No such file" in found.message


def test_subjects_without_an_authority_call_in_vain(tmp_path: Path) -> None:
    text = '[acme]\nsubjects = ["acme.example"]\n'
    found = declared(tmp_path, text)
    assert found.state is State.WARNING and "--tls-client-ca FILE (api.tls_client_ca)" in found.remedy
    files = {"tls_certificate": "c", "tls_key": "k", "tls_client_ca": "a"}
    assert declared(tmp_path, text, **files).state is State.OK


def test_a_file_that_others_may_write_is_a_warning(tmp_path: Path) -> None:
    declared(tmp_path, ACME)
    (tmp_path / "tenants.toml").chmod(0o622)
    found = tenants(ApiConfig(tenants=str(tmp_path / "tenants.toml")))
    assert found.state is State.WARNING and found.remedy.startswith("chmod go-w")


def test_a_token_of_nobody_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERD_TOKEN", "secret")
    assert declared(tmp_path, ACME).state is State.OK
    monkeypatch.setenv("ADAPTERD_TOKEN", "other")
    found = declared(tmp_path, ACME)
    assert found.state is State.WARNING and "ADAPTERD_TOKEN" in found.remedy and "other" not in str(found).split()


class TestTls:
    @pytest.fixture
    def ca(self) -> trustme.CA:
        return trustme.CA()

    def config(self, folder: Path) -> ApiConfig:
        return ApiConfig(tls_certificate=str(folder / "chain.pem"), tls_key=str(folder / "key.pem"))

    def write(self, folder: Path, certificate: trustme.LeafCert) -> None:
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        (folder / "key.pem").chmod(0o600)
        (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))

    @pytest.mark.parametrize("kind", list(trustme.KeyType))
    def test_a_pair_is_well_and_its_end_is_told(self, ca: trustme.CA, tmp_path: Path, kind: trustme.KeyType) -> None:
        end = NOW + 90 * DAY
        self.write(tmp_path, ca.issue_cert("one.example", not_after=end, key_type=kind))
        found = tls(self.config(tmp_path))
        assert found.state is State.OK and "one.example" in found.message and str(end.year) in found.message

    def test_another_key_is_told_with_both_names(self, ca: trustme.CA, tmp_path: Path) -> None:
        self.write(tmp_path, ca.issue_cert("one.example"))
        ca.issue_cert("two.example").private_key_pem.write_to_path(tmp_path / "key.pem")
        found = tls(self.config(tmp_path))
        assert (found.name, found.state) == ("tls", State.PROBLEM)
        assert "key.pem is not the key of" in found.message and "chain.pem" in found.message
        assert "--tls-key (api.tls_certificate, api.tls_key)" in found.remedy

    @pytest.mark.parametrize(
        ("begin", "end", "state", "says"),
        [
            (-20, -10, State.PROBLEM, "has expired"),
            (10, 20, State.PROBLEM, "is not valid yet"),
            (-10, 3, State.WARNING, "is valid for"),
        ],
    )
    def test_when_it_is_valid_is_told(
        self, ca: trustme.CA, tmp_path: Path, begin: int, end: int, state: State, says: str
    ) -> None:
        cert = ca.issue_cert("one.example", not_before=NOW + begin * DAY, not_after=NOW + end * DAY)
        self.write(tmp_path, cert)
        found = tls(self.config(tmp_path))
        assert found.state is state and says in found.message and "--tls-certificate" in found.remedy

    @pytest.mark.parametrize("broken", ["chain.pem", "key.pem"])
    def test_what_is_no_pem_or_not_there_is_told(self, ca: trustme.CA, tmp_path: Path, broken: str) -> None:
        self.write(tmp_path, ca.issue_cert("one.example"))
        (tmp_path / broken).write_text("-----BEGIN NOTHING")
        assert tls(self.config(tmp_path)).state is State.PROBLEM
        (tmp_path / broken).unlink()
        found = tls(self.config(tmp_path))
        assert found.state is State.PROBLEM and f"{broken} cannot be read: No such file" in found.message

    def test_a_key_with_a_password_is_told(self, ca: trustme.CA, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives import serialization

        self.write(tmp_path, ca.issue_cert("one.example"))
        key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
        locked = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
        (tmp_path / "key.pem").write_bytes(locked)
        found = tls(self.config(tmp_path))
        assert found.state is State.PROBLEM and "encrypted" in found.message and "openssl pkey" in found.remedy

    def test_a_key_that_others_may_read_is_a_warning(self, ca: trustme.CA, tmp_path: Path) -> None:
        self.write(tmp_path, ca.issue_cert("one.example"))
        assert tls_key(self.config(tmp_path)).state is State.OK
        (tmp_path / "key.pem").chmod(0o644)
        found = tls_key(self.config(tmp_path))
        assert found.state is State.WARNING and "mode 644" in found.message
        assert found.remedy == f"chmod 600 {tmp_path / 'key.pem'} (api.tls_key)"

    def test_an_authority_is_read(self, ca: trustme.CA, tmp_path: Path) -> None:
        ca.cert_pem.write_to_path(tmp_path / "ca.pem")
        config = ApiConfig(tls_certificate="c", tls_key="k", tls_client_ca=str(tmp_path / "ca.pem"))
        assert tls_client_ca(config).state is State.OK
        (tmp_path / "ca.pem").write_text("nothing")
        found = tls_client_ca(config)
        assert found.state is State.PROBLEM and "--tls-client-ca (api.tls_client_ca)" in found.remedy
