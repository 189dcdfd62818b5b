"""Stage 0, who calls: the tenant of a call, by its bearer token or its client certificate."""

from __future__ import annotations

from collections.abc import Iterable

from server.api.handlers import Context
from server.audit import Audit
from server.core import ANYONE, Tenant
from server.errors import Unauthenticated
from server.metrics import Metrics
from server.tenants import Tenants

HEADER = "authorization"
SCHEME = "bearer "
NAMES = ("x509_common_name", "x509_subject_alternative_name")


class Gate:
    """Where no tenants are declared, everybody is ANYONE."""

    def __init__(self, tenants: Tenants, audit: Audit, metrics: Metrics) -> None:
        self.audit = audit
        self._tenants = tenants
        self._metrics = metrics

    def caller(self, context: Context) -> Tenant:
        """Raises Unauthenticated, with one text for all that may be wrong."""
        if self._tenants.are_open:
            return ANYONE
        return self.tenant_of(_token(context), _subjects(context), str(context.peer()))

    def tenant_of(self, token: str | None, subjects: Iterable[str], peer: str) -> Tenant:
        """Raises Unauthenticated.

        token      None where none was sent
        subjects   names of the certificate that the caller has shown
        """
        if self._tenants.are_open:
            return ANYONE
        if token is not None:
            tenant = self._tenants.of_token(token)
            if tenant is None:
                raise self._denied(peer, "unknown token")
            return tenant
        tenant = self._tenants.of_subjects(subjects)
        if tenant is None:
            raise self._denied(peer, "no token, and no certificate of a tenant")
        return tenant

    def _denied(self, peer: str, why: str) -> Unauthenticated:
        self._metrics.unauthenticated()
        self.audit.denied(peer, why)
        return Unauthenticated(
            'no credentials that are known here; send the metadata "authorization: Bearer TOKEN", or the client'
            " certificate of a tenant"
        )


def _token(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == HEADER:
            return bearer(value if isinstance(value, str) else value.decode("latin-1"))
    return None


def bearer(text: str | None) -> str | None:
    """The token in an authorization header; empty if it holds something else."""
    if text is None:
        return None
    return text[len(SCHEME) :].strip() if text[: len(SCHEME)].lower() == SCHEME else ""


def _subjects(context: Context) -> Iterable[str]:
    auth = context.auth_context() or {}
    for key in NAMES:
        for value in auth.get(key, ()):
            yield value.decode(errors="replace") if isinstance(value, bytes) else str(value)
