"""TLS: whether certificate and key can be read, belong together, and last."""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.config import ApiConfig
from server.doctor.finding import Finding, ok, problem, warning

SOON_S = 14 * 86_400.0
DAY_S = 86_400.0
OTHERS = 0o077
ROUNDS = 10  # of a handshake, which takes three
# OpenSSL's own numbers of what is wrong with a certificate.
NOT_YET_VALID, EXPIRED = 9, 10
RENEW = "get a new one, and put it in the place of --tls-certificate (api.tls_certificate): it is read while serving"


def tls(api: ApiConfig) -> Finding:
    """Certificate and key: readable, of one pair, valid now and for a while."""
    certificate, key = Path(api.tls_certificate), Path(api.tls_key)
    for path, setting in ((certificate, "tls_certificate"), (key, "tls_key")):
        if (unreadable := _unreadable(path)) is not None:
            return problem("tls", f"{path} cannot be read: {unreadable}", _name_file(setting))
    try:
        facts = _handshake(certificate, key)
    except ssl.SSLCertVerificationError as error:
        return _not_valid(certificate, error)
    except (ssl.SSLError, ValueError) as error:
        return _no_pair(certificate, key, error)
    left_s = ssl.cert_time_to_seconds(facts["notAfter"]) - time.time()
    names = ", ".join(value for _, value in facts.get("subjectAltName", ())) or "no name"
    if left_s < SOON_S:
        days = f"{left_s / DAY_S:.1f} days"
        return warning("tls", f"{certificate} for {names} is valid for {days} more, until {facts['notAfter']}", RENEW)
    return ok("tls", f"{certificate.name} for {names}, valid until {facts['notAfter']}")


def tls_key(api: ApiConfig) -> Finding:
    """Whether the key is the server's alone."""
    path = Path(api.tls_key)
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        return problem("tls_key", f"{path} cannot be read: {error.strerror}", _name_file("tls_key"))
    if mode & OTHERS:
        return warning(
            "tls_key", f"others than its owner may use {path} (mode {mode:o})", f"chmod 600 {path} (api.tls_key)"
        )
    return ok("tls_key", f"mode {mode:o}")


def tls_client_ca(api: ApiConfig) -> Finding:
    """The authority of client certificates."""
    path = Path(api.tls_client_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(path)
    except OSError as error:  # an SSLError is one
        return problem("tls_client_ca", f"{path}: {_reason(error)}", _name_file("tls_client_ca"))
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    if ends and max(ends) < time.time():
        return problem(
            "tls_client_ca",
            f"every certificate in {path} has expired, so that no client's is accepted",
            "put the authority's new one there: --tls-client-ca (api.tls_client_ca)",
        )
    return ok("tls_client_ca", f"{path.name}, {len(ends)} authorities")


def _handshake(certificate: Path, key: Path) -> dict[str, Any]:
    """What a client is shown, which trusts exactly this certificate. Raises SSLError, ValueError.

    Python reads certificates in handshakes only; this one is in memory.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key, password=_no_password)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own certificate is authority enough
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(ROUNDS):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return dict(ends[0].getpeercert() or {})


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to type its password")


def _not_valid(certificate: Path, error: ssl.SSLCertVerificationError) -> Finding:
    if error.verify_code == EXPIRED:
        return problem("tls", f"{certificate} has expired", RENEW)
    if error.verify_code == NOT_YET_VALID:
        return problem(
            "tls", f"{certificate} is not valid yet", f"set the clock (timedatectl set-ntp true), or {RENEW}"
        )
    return problem("tls", f"{certificate}: {error.verify_message}", RENEW)


def _no_pair(certificate: Path, key: Path, error: ssl.SSLError | ValueError) -> Finding:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return problem(
            "tls",
            f"{key} is not the key of {certificate}",
            "name the two that were made together: --tls-certificate and --tls-key (api.tls_certificate, api.tls_key)",
        )
    if isinstance(error, ssl.SSLError):
        return problem(
            "tls",
            f"{certificate} and {key} are no certificate chain and its key in PEM: {_reason(error)}",
            f"{_name_file('tls_certificate')}, {_name_file('tls_key')}",
        )
    return problem(
        "tls", f"{key}: {error}", f"openssl pkey -in {key} -out KEY.pem, and --tls-key KEY.pem (api.tls_key)"
    )


def _unreadable(path: Path) -> str | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _name_file(setting: str) -> str:
    return f"name a PEM file that this user may read: --{setting.replace('_', '-')} (api.{setting})"


def _reason(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return (reason or error.strerror or str(error)).replace("_", " ").lower()
