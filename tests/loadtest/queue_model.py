"""A server that is a formula: one queue, batches of whatever waits, so much time per batch and per request."""

from __future__ import annotations

import numpy as np

from loadtest.arrivals import Schedule
from loadtest.client import Outcomes

BATCH_S, REQUEST_S = 0.005, 0.002  # so it answers less than 500 requests a second, however it tries
MAX_BATCH = 64


def answered(schedule: Schedule, lag_s: float = 0.0) -> Outcomes:
    """What a generator that sends `lag_s` late would record."""
    num = len(schedule)
    at_s, done_s = schedule.at_s, np.zeros(num)
    stages, batch = np.zeros((num, 5)), np.zeros((num, 4), dtype=np.int64)
    first, now, number = 0, 0.0, 0
    while first < num:
        now = max(now, at_s[first])
        last = min(max(int(np.searchsorted(at_s, now, side="right")), first + 1), first + MAX_BATCH)
        took = BATCH_S + REQUEST_S * (last - first)
        own = slice(first, last)
        stages[own, 3], stages[own, 4] = now - at_s[own], took
        batch[own] = (number, last - first, 32 * (last - first), len(np.unique(schedule.adapter[own])))
        now, first, number = now + took, last, number + 1
        done_s[own] = now
    codes, tokens = np.zeros(num, dtype=np.int64), np.full(num, 32)
    return Outcomes(schedule, at_s + lag_s, done_s + lag_s, codes, tokens, stages, batch)
