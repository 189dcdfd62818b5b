"""How much may be pinned. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adapters_cache.quotas import limit_of
from adapters_cache.registry import Record
from server.core import Tenant, Tier
from server.errors import Overloaded
from server.tenants import Tenants

RETRY_AFTER_S = 5.0  # unpinning is a person's work


def check_pin(record: Record, records: Iterable[Record], budgets: Mapping[Tier, int]) -> None:
    """Raises Overloaded if, with `record` pinned too, a tier could not hold the largest adapter beside what is pinned.

    records  every name there is; those that were never loaded are not known and do not count
    budgets  bytes of each tier
    The largest may itself be pinned: its next version has to fit beside it while requests finish on this one.
    """
    known = [other for other in records if other.sizes]
    for tier, budget_bytes in budgets.items():
        # by digest: names of one digest share their memory
        pinned = {_digest(other): other.sizes[tier] for other in known if other.is_pinned or other is record}
        largest = max((other.sizes[tier] for other in known), default=0)
        left = budget_bytes - sum(pinned.values())
        if left < largest:
            raise Overloaded(
                f"with {record.name!r} pinned, {left} of {tier.value}_bytes {budget_bytes} would be left to all others;"
                f" the largest adapter known takes {largest}. Unpin some or raise {tier.value}_bytes",
                retry_after_s=RETRY_AFTER_S,
            )


def check_tenant_pin(record: Record, records: Iterable[Record], tenants: Tenants) -> None:
    """Raises Overloaded if, with `record` pinned too, its tenant would have pinned more than it may."""
    owner = tenants.owner_of(record.name)
    if owner is None:
        return
    pinned = [other for other in records if (other.is_pinned or other is record) and _is_of(other, owner, tenants)]
    if owner.max_pins and len(pinned) > owner.max_pins:
        raise Overloaded(
            f"{len(pinned) - 1} adapters of tenant {owner.name!r} are pinned, max_pins is {owner.max_pins}; unpin some",
            retry_after_s=RETRY_AFTER_S,
        )
    for tier in (Tier.HOST, Tier.DEVICE):
        limit, size_bytes = limit_of(owner, tier), sum(other.sizes.get(tier, 0) for other in pinned)
        if limit and size_bytes > limit:
            raise Overloaded(
                f"with {record.name!r} pinned, tenant {owner.name!r} would have {size_bytes} bytes pinned, its"
                f" {tier.value}_bytes is {limit}; unpin some",
                retry_after_s=RETRY_AFTER_S,
            )


def _is_of(record: Record, owner: Tenant, tenants: Tenants) -> bool:
    other = tenants.owner_of(record.name)
    return other is not None and other.name == owner.name


def _digest(record: Record) -> str:
    assert record.manifest is not None, "sizes come with a manifest"
    return record.manifest.digest
