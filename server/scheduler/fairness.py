"""Whose turn it is: deficit round robin over tenants, counted in tokens. Pure: no clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

QUANTUM_TOKENS = (
    64  # of weight 1 per round; more lets a tenant run longer before the next one's turn, and a short queue run dry
)


class DeficitRoundRobin:
    """Tenants with waiting work stand in a ring and earn tokens, by weight, every time it turns to them.

    The tenant at the front goes on while what it earned covers its oldest sample. A tenant without work leaves the
    ring and what it earned: nobody saves up while idle. A tenant alone neither earns nor owes.
    """

    def __init__(self, quantum: int = QUANTUM_TOKENS, weight_of: Callable[[str], float] = lambda tenant: 1.0) -> None:
        self._quantum = quantum
        self._weight_of = weight_of
        self._ring: deque[str] = deque()
        self._deficit: dict[str, float] = {}

    def weights(self, more: Iterable[str]) -> float:
        """Of all that wait and of some more, together."""
        return sum(self._weight_of(tenant) for tenant in {*self._ring, *more})

    def enter(self, tenant: str) -> None:
        """`tenant` has work now."""
        self._ring.append(tenant)
        self._deficit[tenant] = 0.0

    def leave(self, tenant: str) -> None:
        """`tenant` has no work any more."""
        self._ring.remove(tenant)
        del self._deficit[tenant]

    def turn(self, cost_of: Callable[[str], int]) -> str | None:
        """Whose oldest sample goes next; None if nobody waits. Asking again without a charge gives the same answer.

        cost_of   tokens of the oldest sample of a tenant
        """
        if len(self._ring) <= 1:
            return self._ring[0] if self._ring else None
        while self._deficit[self._ring[0]] < cost_of(self._ring[0]):
            self._ring.rotate(-1)
            tenant = self._ring[0]
            self._deficit[tenant] += self._quantum * self._weight_of(tenant)
        return self._ring[0]

    def charge(self, tenant: str, num_tokens: int) -> None:
        """`tenant` got `num_tokens` into a batch; out of turn it may end up owing."""
        if len(self._ring) > 1:
            self._deficit[tenant] -= num_tokens
