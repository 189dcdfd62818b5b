"""What the adapters of each tenant may take in one tier, and whose an adapter is. Pure."""

from __future__ import annotations

from collections import Counter

from server.core import Tenant, Tier
from server.errors import TooLarge
from server.tenants import Tenants


class Quotas:
    """Bytes by tenant. An adapter that belongs to none, or to one without a limit, is not counted.

    An adapter in use may carry its tenant over the limit: it goes, or others of its tenant do, when its lease ends.
    """

    def __init__(self, tier: Tier, tenants: Tenants | None = None) -> None:
        self._tier = tier
        self._tenants = tenants
        self._held: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return self._tenants is not None

    def owner_of(self, name: str) -> str:
        owner = self._tenants.owner_of(name) if self._tenants is not None else None
        return owner.name if owner is not None and limit_of(owner, self._tier) else ""

    def check(self, name: str, size_bytes: int) -> None:
        """Raises TooLarge for an adapter that its tenant's limit cannot hold."""
        owner = self._tenants.owner_of(name) if self._tenants is not None else None
        limit = limit_of(owner, self._tier) if owner is not None else 0
        if limit and size_bytes > limit:
            raise TooLarge(
                f"the adapter takes {size_bytes} bytes; {self._tier.value}_bytes of its tenant is {limit}. Raise it to"
                " serve it"
            )

    def note(self, owner: str, size_bytes: int) -> None:
        """An adapter came, or with negative bytes went."""
        if owner:
            self._held[owner] += size_bytes

    def clear(self) -> None:
        self._held.clear()

    def excess(self, owner: str) -> int:
        """Bytes that a tenant holds beyond its limit."""
        if not owner or self._tenants is None:
            return 0
        limit = limit_of(self._tenants.get(owner), self._tier)
        return max(0, self._held[owner] - limit) if limit else 0


def limit_of(tenant: Tenant, tier: Tier) -> int:
    return {Tier.HOST: tenant.host_bytes, Tier.DEVICE: tenant.device_bytes}.get(tier, 0)
