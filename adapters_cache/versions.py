"""Several digests under one name: which answers how much, and which are kept to go back to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from adapters_cache.registry import Record
from server.errors import InvalidInput

NONE: Counter[str] = Counter()
LEAST_CHARS = 8  # of a digest that is abbreviated


@dataclass(frozen=True, slots=True)
class Versions:
    """As in a record: what the name points to, what else answers, and what did before."""

    digest: str
    shares: Mapping[str, int]
    history: tuple[str, ...]


def moved(record: Record, digest: str, num_kept: int) -> Versions:
    """The name points to `digest`; what it pointed to before can be gone back to."""
    shares = {other: percent for other, percent in record.shares.items() if other != digest}
    return Versions(digest, shares, _history(record, {digest, *shares}, num_kept))


def shared(record: Record, digest: str, percent: int, num_kept: int) -> Versions:
    """`digest` answers some requests beside the one that the name points to, in place of other shares."""
    shares = {digest: percent}
    return Versions(record.digest, shares, _history(record, {record.digest, digest}, num_kept))


def divided(record: Record, asked: Mapping[str, int], num_kept: int) -> Versions:
    """As asked, by digest or its first digits; the rest stays with what the name points to.

    Raises InvalidInput for versions that are not there, and for percentages that do not fit.
    """
    known = _known(record)
    percents = {_found(record, known, digest): percent for digest, percent in asked.items()}
    if bad := [percent for percent in percents.values() if not 0 <= percent <= 100]:
        raise InvalidInput(f"percent {bad[0]} is not between 0 and 100")
    rest = 100 - sum(percents.values())
    if rest < 0 or (rest > 0 and record.digest in percents):
        raise InvalidInput(f"the percentages make {100 - rest}; they have to make 100, or leave the rest to the others")
    percents.setdefault(record.digest, rest)
    largest = max(percents, key=lambda digest: (percents[digest], digest == record.digest))
    digest = record.digest if percents[record.digest] else largest
    shares = {other: percent for other, percent in percents.items() if percent and other != digest}
    return Versions(digest, shares, _history(record, {digest, *shares}, num_kept))


class History:
    """Digests of all names that have several: those that answer requests, and those that a name can go back to too."""

    def __init__(self) -> None:
        self.answering: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self._noted: dict[str, tuple[Counter[str], Counter[str]]] = {}

    def note(self, record: Record) -> None:
        """Take over how a name is now."""
        if (noted := self._noted.pop(record.name, None)) is not None:
            self._drop(*noted)
        if record.shares or record.history:
            noted = self._noted[record.name] = Counter(record.digests), Counter(record.history)
            self._add(*noted)

    @contextmanager
    def hold(self, digest: str) -> Iterator[None]:
        """Count a digest among those that answer, which the disk does not let go, for a while."""
        self._add(Counter([digest]))
        try:
            yield
        finally:
            self._drop(Counter([digest]))

    def _add(self, answering: Counter[str], others: Counter[str] = NONE) -> None:
        self.answering.update(answering)
        self.known.update(answering + others)

    def _drop(self, answering: Counter[str], others: Counter[str] = NONE) -> None:
        for counts, gone in ((self.answering, answering), (self.known, answering + others)):
            for digest in gone:
                counts[digest] -= 1
                if not counts[digest]:
                    del counts[digest]


def _known(record: Record) -> list[str]:
    return list(dict.fromkeys(filter(None, (record.digest, *record.shares, *record.history))))


def _history(record: Record, answering: set[str], num_kept: int) -> tuple[str, ...]:
    return tuple([digest for digest in _known(record) if digest not in answering][:num_kept])


def _found(record: Record, known: list[str], text: str) -> str:
    fitting = [digest for digest in known if digest.startswith(text)] if len(text) >= LEAST_CHARS else []
    if len(fitting) != 1:
        shown = ", ".join(digest[:12] for digest in known) or "none"
        raise InvalidInput(
            f"adapter {record.name!r} has no version {text[:64]!r}; give {LEAST_CHARS} or more digits of one of {shown}"
        )
    return fitting[0]
