"""The tenants of a server: who may call, declared in a file that is read again when it changes.

[acme]                                  # a name, for logs and metrics
credentials = ["sha256:9f86d0..."]      # of bearer tokens; `adapterd token` makes one
subjects = ["acme.example"]             # common or alternative names of client certificates
adapters = ["acme-*"]                   # its own
shared = ["base", "public-*"]           # others' that it may ask for
weight = 2.0
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, get_type_hints

from server.core import ANYONE, Tenant
from server.errors import AdapterNotFound, Forbidden, InvalidInput
from server.ledger import MAX_TENANTS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
PREFIX = "sha256:"
WEIGHTS = (0.01, 100.0)  # a turn takes as many rounds as the smallest is small
UNDECLARED = ("name", "index")
NOBODY = Tenant("nobody")


def digest_of(token: str) -> str:
    """As `Tenant.credentials` holds it. Tokens are long and random, so nothing slower is needed."""
    return sha256(token.encode()).hexdigest()


class Tenants:
    """Those of now. On the event loop's thread."""

    def __init__(self, tenants: Sequence[Tenant] = (ANYONE,)) -> None:
        self._indices: dict[str, int] = {}
        self.generation = 0
        self.replace(tenants)

    def replace(self, tenants: Sequence[Tenant]) -> None:
        """Others from now on; one that stays keeps its index. Raises InvalidInput when there have been too many."""
        for tenant in tenants:
            index = tenant.index or len(self._indices) + 1
            if self._indices.setdefault(tenant.name, index) >= MAX_TENANTS:
                raise InvalidInput(
                    f"more than {MAX_TENANTS - 1} tenants were declared since the start; restart for more"
                )
        self.all = tuple(replace(tenant, index=self._indices[tenant.name]) for tenant in tenants)
        self._by_name = {tenant.name: tenant for tenant in self.all}
        self._by_credential = {digest: tenant for tenant in self.all for digest in tenant.credentials}
        self._by_subject = {subject: tenant for tenant in self.all for subject in tenant.subjects}
        self.generation += 1

    @property
    def are_open(self) -> bool:
        """Whether anyone may call, without saying who."""
        return ANYONE.name in self._by_name

    def get(self, name: str) -> Tenant:
        """One that left may do nothing any more."""
        return self._by_name.get(name, NOBODY)

    def of_token(self, token: str) -> Tenant | None:
        return self._by_credential.get(digest_of(token))

    def of_subjects(self, subjects: Iterable[str]) -> Tenant | None:
        return next((self._by_subject[subject] for subject in subjects if subject in self._by_subject), None)

    def owner_of(self, adapter: str) -> Tenant | None:
        """Whose limits count for an adapter: the first one's that has it among its own."""
        return next((tenant for tenant in self.all if tenant.owns(adapter)), None)


def require_use(tenant: Tenant, name: str) -> None:
    """Raises AdapterNotFound, as for a name that is not there."""
    if not tenant.may_use(name):
        raise unknown(name)


def require_own(tenant: Tenant, name: str) -> None:
    """Raises Forbidden where a tenant may not change an adapter, AdapterNotFound where it may not know of it."""
    require_use(tenant, name)
    if not tenant.can_load:
        raise Forbidden(f"tenant {tenant.name!r} may not load adapters; its operator sets can_load")
    if not tenant.owns(name):
        raise Forbidden(f"adapter {name[:128]!r} is shared with tenant {tenant.name!r}, which may ask for it only")


def unknown(name: str) -> AdapterNotFound:
    return AdapterNotFound(
        f"no adapter is registered as {name[:128]!r}; list the adapters for the names there are", adapter=name[:128]
    )


def read_tenants(path: Path) -> tuple[Tenant, ...]:
    """Raises InvalidInput with the tenant, the key and the value."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(
            f"tenants file {path.name} cannot be read: {error.strerror}; name another one with --tenants (api.tenants)"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers of too many digits are no TOMLDecodeError
        raise InvalidInput(f"tenants file {path.name}: {error}") from error
    if not tables:
        raise InvalidInput(f"tenants file {path.name} declares no tenant: nobody could call")
    tenants = tuple(_tenant(name, table) for name, table in tables.items())
    _check_apart(tenants)
    return tenants


def check_name(name: str) -> None:
    """Raises InvalidInput for what cannot be a tenant's."""
    if not NAME.fullmatch(name) or name in (ANYONE.name, NOBODY.name):
        raise InvalidInput(f"{name[:128]!r} cannot be a tenant's name: 1 to 64 letters, digits, '.', '_' and '-'")


def _tenant(name: str, table: Any) -> Tenant:
    check_name(name)
    if not isinstance(table, Mapping):
        raise InvalidInput(f"{name!r} stands outside of a tenant's table; write [{name}]")
    hints = {key: hint for key, hint in get_type_hints(Tenant).items() if key not in UNDECLARED}
    for key in table:
        if key not in hints:
            raise InvalidInput(f"tenant {name!r}: unknown key {key!r}; known: {', '.join(hints)}")
    values = {key: _typed(f"tenant {name!r}: {key}", hints[key], value) for key, value in table.items()}
    values["credentials"] = tuple(_credential(name, text) for text in values.get("credentials", ()))
    if not values["credentials"] and not values.get("subjects"):
        raise InvalidInput(f"tenant {name!r} has neither credentials nor subjects: nobody could call as it")
    least, most = WEIGHTS
    if not least <= values.get("weight", 1.0) <= most:
        raise InvalidInput(f"tenant {name!r}: weight {values['weight']:g} must be from {least:g} to {most:g}")
    return Tenant(name=name, **values)


def _typed(key: str, hint: Any, value: Any) -> Any:
    if hint == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        raise InvalidInput(f"{key} is not a list of texts")  # and what it is may be a token
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, hint | int) and not isinstance(value, bool):
        if 0 <= value < 1 << 62 and isfinite(value):
            return hint(value)
        raise InvalidInput(f"{key} = {value!r} must be a finite number, 0 or more")
    raise InvalidInput(f"{key} = {str(value)[:100]!r} is not {_words(hint)}")


def _words(hint: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}[hint]


def _credential(name: str, text: str) -> str:
    digest = text.removeprefix(PREFIX)
    if digest == text or not DIGEST.fullmatch(digest):
        raise InvalidInput(
            f"tenant {name!r}: a credential is not {PREFIX} and 64 hex digits, the hash of a token: `adapterd token`"
            " makes both"
        )
    return digest


def _check_apart(tenants: Sequence[Tenant]) -> None:
    """Raises InvalidInput where a credential could mean either of two."""
    for kind in ("credentials", "subjects"):
        seen: dict[str, str] = {}
        for tenant in tenants:
            for value in getattr(tenant, kind):
                if seen.setdefault(value, tenant.name) != tenant.name:
                    raise InvalidInput(f"tenants {seen[value]!r} and {tenant.name!r} share one of their {kind}")
