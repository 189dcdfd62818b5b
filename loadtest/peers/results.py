"""What a comparison gives, and the arithmetic behind it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loadtest.figures import Figure, at_least

Answers = Sequence[Sequence[float] | None]  # per text; None where nothing was answered


@dataclass(frozen=True, slots=True)
class Row:
    """One contender.

    ratio           how many times its tokens/s ours gives on the same workload: the median of the rounds' own ratios;
                    None for ours, and for a peer without comparable times
    target          least ratio, None where there is none
    difference      largest |difference| / (1 + |ours|) of all answers
    budget          tokens per batch, the fastest of those tried; 0 for one text at a time
    num_tokens      of the texts that were answered, padding not counted
    num_tasks       adapters or models that texts were dealt to
    bytes_per_task  where it was measured
    rss_bytes       of the process after loading
    error           why there are no times
    """

    key: str
    title: str
    workload: str
    versions: Mapping[str, str]
    ratio: float | None
    target: float | None
    difference: float | None
    budget: int
    num_tokens: int
    num_tasks: int
    bytes_per_task: int | None
    rss_bytes: int | None
    seconds: Sequence[float]
    error: str

    @property
    def tokens_per_s(self) -> float | None:
        """Of the median round."""
        return None if self.error else self.num_tokens / statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class PeersReport:
    machine: Mapping[str, str]
    command: str
    workload: str
    rows: Sequence[Row]
    base: str = ""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Of the peers that have a target. One that did not run stands there with its error, as missed."""
        return tuple(
            at_least(f"ours / {row.title}", row.ratio, row.target)
            if row.ratio is not None
            else at_least(f"ours / {row.title}: {row.error or 'ours did not run'}", 0.0, row.target)
            for row in self.rows
            if row.target is not None
        )


def distance(answers: Answers, ours: Answers) -> float:
    """Largest |difference| / (1 + |ours|) over what was answered; infinite where shapes differ or nothing was."""
    errors = [_distance(theirs, own) for theirs, own in _pairs(answers, ours)]
    return max(errors) if errors and len(answers) == len(ours) else float("inf")


def nearest(answers: Answers, others: Answers) -> float:
    """How far apart the two answers to a text are where they are closest."""
    return min(_distance(a, b) for a, b in _pairs(answers, others))


def _pairs(a: Answers, b: Answers) -> Iterator[tuple[Sequence[float], Sequence[float]]]:
    return ((x, y) for x, y in zip(a, b, strict=False) if x is not None and y is not None)


def _distance(theirs: Sequence[float], ours: Sequence[float]) -> float:
    if len(theirs) != len(ours):
        return float("inf")
    errors = [abs(x - y) / (1 + abs(y)) for x, y in zip(theirs, ours, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("inf")  # a NaN is no answer


def rate_ratio(ours: Sequence[float], our_tokens: int, theirs: Sequence[float], their_tokens: int) -> float:
    """How many times their tokens/s ours gives: the median over rounds of the two runs of one round."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median((our_tokens / own) / (their_tokens / other) for own, other in pairs)
