"""Which adapters exist: names, where each comes from, and the digest it points to. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.core import BASE, Manifest, Tier
from server.errors import AdapterNotFound, InvalidInput

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
NAME = re.compile(rf"(?:{_WORD}/)?{_WORD}(?:,{_WORD})*")
MAX_NAME_CHARS = 256


def is_name(name: str) -> bool:
    """A word; of a fusion several, with commas in between; of a saved setup's parts behind its name and a slash."""
    return len(name) <= MAX_NAME_CHARS and NAME.fullmatch(name) is not None and name != BASE


@dataclass(slots=True, eq=False)
class Record:
    """What is known of one name.

    generation  of the newest read that was asked for; `served` of the one behind `digest`
    digest      what the name points to; empty while nothing is loaded
    manifest    of the last successful read, with this name; stays when the adapter is unloaded, as does
    sizes       the bytes it takes in each tier
    """

    name: str
    source: Path
    generation: int = 0
    served: int = 0
    digest: str = ""
    manifest: Manifest | None = None
    sizes: Mapping[Tier, int] = field(default_factory=dict)
    task: str = ""
    labels: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    is_pinned: bool = False
    loaded_at: float | None = None
    last_used_at: float | None = None
    error: str = ""


class Registry:
    """Records by name, in the order of names, and names by digest."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._names: list[str] = []
        self._aliases: dict[str, set[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def register(self, name: str, source: Path) -> Record:
        """Add a name, or move it to another source. Raises InvalidInput for what cannot be a name."""
        if not is_name(name):
            raise InvalidInput(
                f"{name[:128]!r} cannot be an adapter's name: 1 to 128 letters, digits, '.', '_' and '-', starting with"
                f" a letter or digit, and not {BASE!r}; a fusion's may have commas"
            )
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = Record(name, source)
            insort(self._names, name)
        record.source = source
        return record

    def get(self, name: str) -> Record:
        """Raises AdapterNotFound."""
        try:
            return self._records[name]
        except KeyError:
            raise AdapterNotFound(
                f"no adapter is registered as {name[:128]!r}; list the adapters for the names there are",
                adapter=name[:128],
            ) from None

    def records(self) -> Iterable[Record]:
        return self._records.values()

    def page(self, prefix: str, after: str, limit: int) -> tuple[list[Record], int]:
        """Give the first `limit` records behind the name `after`, and how many match in all."""
        start = bisect_left(self._names, prefix)
        end = bisect_left(self._names, prefix + "\x7f") if prefix else len(self._names)  # names are printable ASCII
        first = max(start, bisect_right(self._names, after)) if after else start
        names = self._names[first : min(end, first + limit)] if first < end else []
        return [self._records[name] for name in names], max(0, end - start)

    def point(self, record: Record, digest: str) -> str:
        """Move a name to another digest, or to none; give the one before."""
        previous, record.digest = record.digest, digest
        if previous:
            names = self._aliases[previous]
            names.discard(record.name)
            if not names:
                del self._aliases[previous]
        if digest:
            self._aliases.setdefault(digest, set()).add(record.name)
        return previous

    def is_aliased(self, digest: str) -> bool:
        return digest in self._aliases

    def is_pinned(self, digest: str) -> bool:
        """Whether any name that points to `digest` is pinned."""
        return any(self._records[name].is_pinned for name in self._aliases.get(digest, ()))
