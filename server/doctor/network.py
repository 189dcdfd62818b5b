"""Ports and addresses that the server listens on, and servers that are there already."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from server.config import ApiConfig, is_loopback
from server.doctor.finding import Finding, ok, problem, warning
from server.doctor.peer import Speaks, look_at
from server.errors import InvalidInput
from server.fronts.port import reserve

ASK_S = 2.0
SETTINGS = {"port": ("--port", "--host", "host"), "http_port": ("--http-port", "--http-host", "http_host")}
PRIVILEGED = 1024


def port(api: ApiConfig, name: str) -> Finding:
    """Whether a port can be had, and if not, who has it. `name`: "port" or "http_port"."""
    flag, host_flag, host_name = SETTINGS[name]
    host, number = getattr(api, host_name), getattr(api, name)
    if number == 0:
        return ok(name, f"{host}: a free one is taken")
    if name == "http_port" and number == api.port and host == api.host:
        return problem(name, f"{number} is the gRPC port too", f"{flag} {number + 1} (api.{name})")
    try:
        reserve(host, number).close()
    except InvalidInput as error:
        return _not_to_be_had(host, number, error.__cause__, name)
    return ok(name, f"{host}:{number} is free")


def _not_to_be_had(host: str, number: int, cause: BaseException | None, name: str) -> Finding:
    flag, host_flag, host_name = SETTINGS[name]
    code = cause.errno if isinstance(cause, OSError) else None
    why = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    if code == errno.EADDRINUSE:
        return problem(
            name,
            f"{host}:{number} is taken by {holder(host, number)}",
            f"stop it (ss -ltnp 'sport = :{number}' names the process), or take another port: {flag} {number + 1}"
            f" (api.{name}), 0 for any free one",
        )
    if code == errno.EACCES:
        return problem(
            name,
            f"{host}:{number} may not be had: {why}",
            f"take a port of {PRIVILEGED} or more: {flag} (api.{name}), or give the process CAP_NET_BIND_SERVICE",
        )
    return problem(
        name,
        f"{host}:{number} cannot be had: {why}",
        f"name an address of this machine: {host_flag} 127.0.0.1, or 0.0.0.0 for all of them (api.{host_name})",
    )


def holder(host: str, number: int) -> str:
    """Who listens on a port of this machine, in words."""
    reached = _reachable(host)
    peer = look_at(reached, number)
    if peer.speaks is Speaks.NOTHING:
        return "a process that does not take connections"
    if peer.speaks is Speaks.HTTP:
        return "a server of plain HTTP"
    if peer.speaks is Speaks.UNKNOWN:
        return "a process that does not speak gRPC"
    return _grpc_holder(f"[{reached}]:{number}" if ":" in reached else f"{reached}:{number}")


def _grpc_holder(address: str) -> str:
    from adapterd import Client, Error

    with Client(address, max_retries=0) as client:
        try:
            client.wait_ready(ASK_S)
        except Error:
            return "a server of gRPC that does not say it serves"
        try:
            return f"an adapterd that serves {client.base(timeout=ASK_S).name}"
        except Error as error:
            known = error.reason == "UNAUTHENTICATED"
            return "an adapterd that wants credentials" if known else "a server of gRPC"


def _reachable(host: str) -> str:
    """An address to connect to, for one that means all of them."""
    name = host.strip("[]")
    try:
        address = ip_address(name)
    except ValueError:
        return name
    return ("::1" if address.version == 6 else "127.0.0.1") if address.is_unspecified else name


def listening(api: ApiConfig) -> Finding:
    """Who reaches the server, and what they could read or do there."""
    for setting, host in (("host", api.host), ("http_host", api.http_host)):
        option = f"--{setting.replace('_', '-')}"
        if is_loopback(host):
            continue
        if not api.tls_certificate:
            return warning(
                "listening",
                f"{setting} {host!r} is not loopback and TLS is off: tokens, texts and answers can be read on the way",
                "--tls-certificate and --tls-key (api.tls_certificate, api.tls_key), or"
                f" {option} 127.0.0.1 (api.{setting})",
            )
        if not api.tenants:
            return warning(
                "listening",
                f"anyone who reaches {setting} {host!r} may load, replace and unload adapters (allow_anonymous)",
                "declare tenants: --tenants FILE (api.tenants); adapterd token NAME makes credentials",
            )
    is_local = is_loopback(api.host) and is_loopback(api.http_host)
    where = "only this machine" if is_local else "the network, with TLS and tenants"
    return ok("listening", f"{api.host} and, for HTTP, {api.http_host} are reached from {where}")
