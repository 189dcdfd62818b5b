"""Which adapters exist: names, where each comes from, and the digest it points to. Pure."""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from adapters_cache.sources import Source
from server.core import BASE, Manifest, Tier
from server.errors import AdapterNotFound, InvalidInput
from server.tenants import unknown

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
    shares      percent of the requests that other digests answer, by digest
    history     digests that the name pointed to before, the latest first
    stamp       of the source when it was last read
    stamps      of the source when it held these digests, as far as that is known
    manifest    of the last successful read, with this name; stays when the adapter is unloaded, as does
    sizes       the bytes it takes in each tier
    """

    name: str
    source: Source
    generation: int = 0
    served: int = 0
    digest: str = ""
    shares: Mapping[str, int] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    stamp: str = ""
    stamps: Mapping[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None
    sizes: Mapping[Tier, int] = field(default_factory=dict)
    task: str = ""
    labels: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    is_pinned: bool = False
    loaded_at: float | None = None
    last_used_at: float | None = None
    error: str = ""

    @property
    def digests(self) -> tuple[str, ...]:
        """All that answer requests for this name."""
        return tuple(filter(None, (self.digest, *self.shares)))

    def choose(self, key: str, version: str = "") -> str:
        """The digest that answers a request; of equal keys the same one, without a key any by chance.

        version   the first digits of the one that has to; raises AdapterNotFound where none of those begins so
        """
        if version and self.digests:
            return self._version(version)
        if not self.shares:
            return self.digest
        point = _point(f"{self.name}\0{key}") if key else random.random()
        for digest, percent in self.shares.items():
            point -= percent / 100
            if point < 0:
                return digest
        return self.digest

    def _version(self, version: str) -> str:
        fitting = [digest for digest in self.digests if digest.startswith(version)]
        if not fitting:
            raise no_version(self.name, version, self.digests)
        return fitting[0]


def no_version(name: str, version: str, digests: Iterable[str]) -> AdapterNotFound:
    shown = ", ".join(digest[:12] for digest in digests)
    return AdapterNotFound(
        f"no version {version[:64]!r} of {name[:128]!r} answers; there is {shown}. Others answer once they have a share"
        " of its traffic",
        adapter=name[:128],
    )


class Registry:
    """Records by name, in the order of names, and names by digest."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._names: list[str] = []
        self._aliases: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def register(self, name: str, source: Source) -> Record:
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

    def find(self, name: str) -> Record | None:
        return self._records.get(name)

    def get(self, name: str) -> Record:
        """Raises AdapterNotFound."""
        try:
            return self._records[name]
        except KeyError:
            raise unknown(name) from None

    def records(self) -> Iterable[Record]:
        return self._records.values()

    def page(self, prefix: str, after: str, limit: int) -> tuple[list[Record], int]:
        """Give the first `limit` records behind the name `after`, and how many match in all."""
        start = bisect_left(self._names, prefix)
        end = bisect_left(self._names, prefix + "\x7f") if prefix else len(self._names)  # names are printable ASCII
        first = max(start, bisect_right(self._names, after)) if after else start
        names = self._names[first : min(end, first + limit)] if first < end else []
        return [self._records[name] for name in names], max(0, end - start)

    def point(self, record: Record, digest: str, shares: Mapping[str, int] | None = None) -> set[str]:
        """Move a name to another digest, or to none, with other digests beside it; give those that it left or met."""
        before = set(record.digests)
        record.digest, record.shares = digest, dict(shares or {})
        after = set(record.digests)
        for left in before - after:
            names = self._aliases[left]
            names.discard(record.name)
            if not names:
                del self._aliases[left]
        for met in after - before:
            self._aliases.setdefault(met, set()).add(record.name)
        return before ^ after

    def remove(self, record: Record) -> None:
        """Forget a name that points to nothing."""
        assert not record.digests
        del self._records[record.name]
        del self._names[bisect_left(self._names, record.name)]

    def is_aliased(self, digest: str) -> bool:
        return digest in self._aliases

    def is_pinned(self, digest: str) -> bool:
        """Whether any name that points to `digest` is pinned. Versions beside are not: nobody counted their room."""
        records = (self._records[name] for name in self._aliases.get(digest, ()))
        return any(record.is_pinned and record.digest == digest for record in records)


def _point(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone, here and in every other process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64
