"""Host memory that some adapters have for themselves: a tenant's, by the beginning of their names, say. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from server.errors import InvalidInput


class Reserves:
    """What each group of names holds, and how much of it no other adapter may take.

    rules   "acme-*=67108864": a pattern of names and bytes. The first one that fits a name counts
    """

    def __init__(self, rules: Sequence[str] = ()) -> None:
        """Raises InvalidInput."""
        self._least = dict(_parsed(rule) for rule in rules)
        self._held: Counter[str] = Counter()  # bytes, by pattern

    def __bool__(self) -> bool:
        return bool(self._least)

    def group_of(self, name: str) -> str:
        """The pattern that counts for a name; empty for none."""
        return next((pattern for pattern in self._least if fnmatchcase(name, pattern)), "")

    def note(self, group: str, size_bytes: int) -> None:
        """An adapter of a group came, or with negative bytes went."""
        if group:
            self._held[group] += size_bytes

    def spares(self, group: str, size_bytes: int) -> bool:
        """Whether others may take so many bytes of what a group holds."""
        return not group or self._held[group] - size_bytes >= self._least[group]

    def kept_from(self, group: str) -> int:
        """Bytes that are held and that an adapter of this group cannot have."""
        return sum(min(self._held[other], least) for other, least in self._least.items() if other != group)

    @property
    def total_bytes(self) -> int:
        return sum(self._least.values())


def _parsed(rule: str) -> tuple[str, int]:
    pattern, separator, size = rule.rpartition("=")
    if not separator or not pattern.strip() or not size.strip().isdecimal():
        raise InvalidInput(f"reserve {rule!r} is not PATTERN=BYTES, as acme-*=67108864")
    return pattern.strip(), int(size)
