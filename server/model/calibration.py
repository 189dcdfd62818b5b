"""How many tokens a batch needs before more of them no longer pay: measured at start, not guessed.

Tokens per second rise with the size of a batch until the device is saturated. Beyond that knee larger batches give
nothing but waiting, so the knee is the budget.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.config import SchedulerConfig
from server.core import Batch, Encoding, Pooling, Sample, TokenInput, target_of

LENGTH = 32  # tokens of a measured sample
SMALLEST, LARGEST = 64, 1 << 16
KNEE = 0.95  # of the best rate: the smallest batch that reaches it is large enough
FLAT = 1.02  # a doubling that gains less than this factor, twice in a row, ends the search
REPEATS = 3  # the fastest counts: whatever disturbs a measurement makes it slower
MAX_SECONDS = 3.0
ALWAYS = (
    256  # tokens up to which batches are measured however long that takes: a moment's hiccup must not end it sooner
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """rates   tokens per second by tokens per batch, in the order measured"""

    rates: dict[int, float]
    seconds: float

    @property
    def best(self) -> float:
        return max(self.rates.values())

    @property
    def budget_tokens(self) -> int:
        """The smallest measured batch at the knee."""
        return min(tokens for tokens, rate in self.rates.items() if rate >= KNEE * self.best)


def calibrate(
    run: Callable[[int], object],
    max_samples: int,
    length: int = LENGTH,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure batches of doubling size until they no longer gain, or, from some size on, the time for it is used up.

    run           computes that many samples of `length` tokens, and returns when they are done
    max_samples   of a batch
    """
    started, rates, num_flat, tokens = clock(), dict[int, float](), 0, SMALLEST
    run(SMALLEST // length)  # the first pass of a process is slower than any other
    while True:
        seconds = min(_timed(run, tokens // length, clock) for _ in range(REPEATS))
        before = max(rates.values(), default=0.0)
        rates[tokens] = tokens / seconds
        num_flat = num_flat + 1 if rates[tokens] < FLAT * before else 0
        elapsed = clock() - started
        tokens *= 2
        would_take = elapsed + 2 * REPEATS * seconds  # twice the tokens
        is_late = would_take > MAX_SECONDS and tokens > ALWAYS
        if num_flat == 2 or tokens > min(LARGEST, max_samples * length) or is_late:
            return Calibration(rates, elapsed)


class Runner(Protocol):
    def execute(self, batch: Batch) -> object: ...


def calibrate_runner(runner: Runner, loop: AbstractEventLoop, config: SchedulerConfig, max_tokens: int) -> Calibration:
    """The same with a runner on the calling thread, before it has a thread of its own. The base alone runs.

    loop         of the replies, which nobody waits for
    max_tokens   of one input
    """
    length = min(LENGTH, max_tokens)
    ids = (0,) * length
    text, nobody = Encoding(ids, ids, TokenInput(ids)), target_of(None)

    def run(num_samples: int) -> None:
        samples = [Sample(text, nobody, Pooling.CLS, loop.create_future(), None) for _ in range(num_samples)]
        runner.execute(Batch(samples, {}))

    return calibrate(run, config.max_batch_samples, length)


def _timed(run: Callable[[int], object], num_samples: int, clock: Callable[[], float]) -> float:
    started = clock()
    run(num_samples)
    return max(clock() - started, 1e-9)
