"""What becomes of a sample: whether somebody still waits for it, and what that caller is told."""

from __future__ import annotations

import copy
import logging
import time

from server.core import Sample, SampleOutput
from server.errors import AdapterdError, DeadlineExceeded, Internal

CLOCK_S = 0.002  # how far an event loop's clock may lag behind `time.monotonic`

log = logging.getLogger(__name__)

Outcome = SampleOutput | AdapterdError


def resolve(sample: Sample, outcome: Outcome) -> None:
    """Answer `sample`, unless its caller has left."""
    if sample.reply.done():
        return
    if isinstance(outcome, AdapterdError):
        sample.reply.set_exception(copy.copy(outcome))  # each caller raises its own: a traceback grows as it rises
        sample.reply.exception()  # a caller who is cancelled at this very moment never looks; that is no leak
    else:
        sample.reply.set_result(outcome)


def is_late(sample: Sample) -> bool:
    return sample.deadline is not None and time.monotonic() + CLOCK_S >= sample.deadline


def is_dead(sample: Sample) -> bool:
    """Nobody waits for it any more."""
    return sample.reply.done() or is_late(sample)


def too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before compute; allow more time")


def as_ours(error: Exception, event: str) -> AdapterdError:
    """What the callers of the failed samples are told; a stranger's message stays in the log."""
    if isinstance(error, AdapterdError):
        return error
    log.error("%s", event, exc_info=error)
    return Internal(f"{event}; try again")
