"""What is asked over the network: registries, and a server that runs."""

from __future__ import annotations

import os
from itertools import islice
from typing import Any

from adapterd.calls import TLS_VARIABLES, TOKEN_VARIABLE
from server.doctor.finding import Finding, ok, problem, warning
from server.doctor.peer import Speaks, address_of, look_at
from server.doctor.within import TookTooLong, within
from server.errors import AdapterdError

REGISTRY_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 5.0
HUB = "hub:"
ANOTHER = "name another with --server HOST:PORT"
MAX_ADAPTERS = 10_000  # of a server, that are looked at for errors


def registry(address: str) -> Finding:
    """Whether an origin lists anything, in a moment."""
    from adapters_cache.sharing.failures import redacted
    from adapters_cache.sharing.origins import Address, open_registry

    shown = redacted(address)
    is_hub = address.startswith(HUB)

    def first() -> int:
        opened = open_registry(Address(HUB if is_hub else address, address.removeprefix(HUB)))
        filters: dict[str, Any] = {"author": address.removeprefix(HUB), "limit": 1} if is_hub else {}
        return len(list(islice(opened.search(**filters), 1)))

    try:
        num_found = within(REGISTRY_TIMEOUT_S, first)
    except (AdapterdError, TookTooLong) as error:
        message = error.message if isinstance(error, AdapterdError) else str(error)
        return problem(
            "registry",
            f"{shown}: {message}",
            "correct --registry (cache.registries), its credentials (docs/training.md, origins.toml), or the network",
        )
    if not num_found:
        return warning(
            "registry", f"{shown} lists no adapter", "adapterd push, or correct --registry (cache.registries)"
        )
    return ok("registry", f"{shown} answers")


def server(address: str, token: str | None = None) -> Finding:
    """Whether a server answers this shell's calls, and how its adapters are."""
    from adapterd import Client, Error

    place = address_of(address)
    if place is not None and look_at(*place).speaks is Speaks.NOTHING and (trouble := unreachable(address)):
        return problem("server", *trouble)  # at once: a call would wait for one that starts
    try:
        with Client(address, token=token, max_retries=0) as client:
            client.wait_ready(CALL_TIMEOUT_S)
            base = client.base(timeout=CALL_TIMEOUT_S)
            listed = list(islice(client.list(timeout=CALL_TIMEOUT_S), MAX_ADAPTERS))
    except OSError as error:
        return problem("server", unreadable(error), f"set {', '.join(TLS_VARIABLES)} to PEM files, or unset them")
    except Error as error:
        if error.reason == "UNAUTHENTICATED":
            return problem("server", f"{address}: {error.message}", WITH_TOKEN)
        trouble = unreachable(address) or (f"{address}: {error}", "read its log, and adapterd top --http HOST:PORT")
        return problem("server", *trouble)
    broken = [f"{adapter.name}: {adapter.error}" for adapter in listed if adapter.error]
    shown = f"{address} serves {len(listed)} adapters on {base.name} ({base.device}, {base.dtype})"
    if broken:
        return warning(
            "server",
            f"{shown}; {len(broken)} could not be read when they were last asked for, {broken[0]}",
            "mend their folders and ask for them again; adapterd list shows each with its error",
        )
    return ok("server", shown)


WITH_TOKEN = (
    f"set {TOKEN_VARIABLE} (or --token) to a tenant's token, or ADAPTERD_CERTIFICATE and ADAPTERD_KEY to its"
    " certificate; adapterd token NAME makes a token for the tenants file"
)


def unreachable(server: str) -> tuple[str, str] | None:
    """Why a call does not get through to a server, and what to do; None where nothing can be told from outside."""
    place = address_of(server)
    if place is None:
        return None
    peer, is_secured = look_at(*place), is_secure()
    if peer.speaks is Speaks.NOTHING:
        why = f" ({peer.why})" if peer.why else ""
        return (
            f"nobody answers at {server}{why}",
            f"start one with adapterd serve, or {ANOTHER}",
        )
    if peer.speaks is Speaks.HTTP:
        return (
            f"{server} speaks plain HTTP, as the port of the metrics does",
            f"it is not the gRPC port: {ANOTHER}",
        )
    if peer.speaks is Speaks.TLS and not is_secured:
        return (
            f"{server} speaks TLS, and this call came in the clear",
            "set ADAPTERD_CA to the PEM file of the authority that signed its certificate",
        )
    if peer.speaks is Speaks.CLEAR and is_secured:
        return (
            f"{server} speaks without TLS, and {_secured_by()} asks for it",
            f"unset {_secured_by()}, or start the server with --tls-certificate and --tls-key",
        )
    if peer.speaks is Speaks.TLS:
        return (
            f"TLS with {server} cannot be agreed on",
            "set ADAPTERD_CA to the authority that signed its certificate, --server to a name in it, and where it asks"
            " for one ADAPTERD_CERTIFICATE and ADAPTERD_KEY to your own",
        )
    if peer.speaks is Speaks.UNKNOWN:
        return f"what listens at {server} does not speak gRPC", f"it is not adapterd's: {ANOTHER}"
    return None


def is_secure() -> bool:
    """Whether this shell's calls go through TLS, as the client has it."""
    return bool(_secured_by())


def _secured_by() -> str:
    return next((name for name in TLS_VARIABLES[:2] if os.environ.get(name)), "")


def unreadable(error: OSError) -> str:
    """Which of the variables named the file that a client could not read."""
    named = next((name for name in TLS_VARIABLES if os.environ.get(name) == str(error.filename)), TLS_VARIABLES[0])
    return f"{named} names {error.filename}, which cannot be read: {error.strerror}"
