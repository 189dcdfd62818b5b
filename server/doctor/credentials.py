"""The tenants file: who may call."""

from __future__ import annotations

import os
from pathlib import Path

from adapterd.calls import TOKEN_VARIABLE
from server.config import ApiConfig
from server.core import Tenant
from server.doctor.finding import Finding, ok, problem, warning
from server.errors import InvalidInput
from server.tenants import digest_of, read_tenants

OTHERS_WRITE = 0o022


def tenants(api: ApiConfig) -> Finding:
    """Whether the file can be read, and what it declares can call."""
    path = Path(api.tenants)
    try:
        found = read_tenants(path)
    except InvalidInput as error:
        return problem(
            "tenants",
            error.message,
            f"correct {path}, named by --tenants (api.tenants); adapterd token NAME prints a tenant's lines",
        )
    unheard = [tenant.name for tenant in found if not tenant.credentials]
    if unheard and not api.tls_client_ca:
        return warning(
            "tenants",
            f"{', '.join(unheard[:5])}: they have subjects alone, and client certificates are not asked for",
            "--tls-client-ca FILE (api.tls_client_ca), or give them credentials: adapterd token NAME",
        )
    if path.stat().st_mode & OTHERS_WRITE:
        return warning(
            "tenants", f"others may write {path}, and so declare themselves", f"chmod go-w {path} (api.tenants)"
        )
    return _of_this_shell(found) or ok("tenants", f"{path.name} declares {_names(found)}")


def _of_this_shell(found: tuple[Tenant, ...]) -> Finding | None:
    """Whether the token that this shell's calls would carry is somebody's."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token or any(digest_of(token) in tenant.credentials for tenant in found):
        return None
    return warning(
        "tenants",
        f"the token in {TOKEN_VARIABLE} is no tenant's of the file: calls from this shell will be refused",
        f"set {TOKEN_VARIABLE} to a token of {_names(found)}; adapterd token NAME makes one",
    )


def _names(found: tuple[Tenant, ...]) -> str:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(tenant.name for tenant in found[:5]) + more
