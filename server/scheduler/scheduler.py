"""Stage 4: choose which samples run next."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from server.config import SchedulerConfig
from server.core import Adapter, Batch, Sample, SampleOutput, SlotLease
from server.errors import AdapterdError, DeadlineExceeded, Internal, Overloaded, Unavailable
from server.metrics import Metrics
from server.scheduler.fairness import DeficitRoundRobin
from server.scheduler.queues import Queue

UNMEASURED_BATCH_TOKENS = 4096  # where nobody measured
MAX_RUNNING = 2  # one batch computes, the next waits at the runner, which takes them one after the other
CLOCK_S = 0.002  # how far an event loop's clock may lag behind `time.monotonic`

log = logging.getLogger(__name__)

Outcome = SampleOutput | AdapterdError
Acquire = Callable[[Adapter | None], SlotLease | None]
Run = Callable[[Batch], Awaitable[Sequence[Outcome]]]


class Scheduler:
    """Holds samples until the runner has room, then hands it batches. All on the event loop's thread.

    Whatever changes what can be done (a sample came or left, a batch ended, a slot may be free) calls `_wake`. `_pump`
    then runs once, at the end of that round of the loop, so samples that arrive together ride together.

    acquire   leases a device slot; None: no room until `notify`; raises: this adapter cannot be served now
    run       computes a batch: when it returns, every fresh slot of the batch holds its adapter
    """

    def __init__(self, config: SchedulerConfig, acquire: Acquire, run: Run, metrics: Metrics) -> None:
        self._config = config
        self._acquire = acquire
        self._run = run
        self._metrics = metrics

        self._queue = Queue(config, DeficitRoundRobin())
        self._blocked: Sample | None = None  # the one for which there was no slot
        self._running: dict[Batch, asyncio.Task[None]] = {}
        self._tainted: set[Batch] = set()  # running, and share a slot that may never have been filled

        self._is_stopping = True
        self._is_woken = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def start(self) -> None:
        self._is_stopping = False

    async def stop(self) -> None:
        """Take nothing new, answer what is queued, then end."""
        self._is_stopping = True
        self._wake()
        await self._is_idle.wait()

    async def submit(self, sample: Sample) -> SampleOutput:
        """Wait for the answer to `sample`. Cancelling the caller takes it out of the queue.

        Raises Overloaded when the queue is full, DeadlineExceeded when its time runs out in the queue, Unavailable
        while stopped, and whatever became of its batch.
        """
        if self._is_stopping:
            raise Unavailable("the server is stopping; send the request to another one")
        sample.enqueued_at = time.monotonic()
        if _is_late(sample):
            self._metrics.expired("queue")
            raise _too_late()
        self._queue.push(sample)
        self._wake()
        timer = self._start_timer(sample)
        try:
            return await sample.reply
        finally:
            if timer:
                timer.cancel()
            if sample in self._queue:
                self._drop(sample)

    def notify(self) -> None:
        """A slot may have become free."""
        self._blocked = None
        self._wake()

    def check_integrity(self) -> None:
        """AssertionError when the books do not balance."""
        self._queue.check_integrity()
        assert self._tainted <= set(self._running)

    # leaving the queue without a batch

    def _start_timer(self, sample: Sample) -> asyncio.TimerHandle | None:
        if sample.deadline is None:
            return None
        return asyncio.get_running_loop().call_at(sample.deadline, self._expire, sample)

    def _expire(self, sample: Sample) -> None:
        """The deadline has come; a sample that is in a batch already is left alone."""
        if sample in self._queue:
            self._drop(sample)
            _resolve(sample, _too_late())

    def _drop(self, sample: Sample) -> None:
        self._queue.remove(sample)
        self._count_dropped(is_late=_is_late(sample))
        self._wake()

    def _count_dropped(self, *, is_late: bool) -> None:
        if is_late:
            self._metrics.expired("queue")
        else:
            self._metrics.cancelled()

    def _fail(self, samples: Iterable[Sample], error: AdapterdError) -> None:
        for sample in samples:
            self._queue.remove(sample)
            _resolve(sample, error)

    # forming batches

    def _wake(self) -> None:
        self._is_idle.clear()
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        while len(self._running) < MAX_RUNNING and (batch := self._form()):
            self._running[batch] = asyncio.create_task(self._compute(batch), name=f"batch {batch.id}")
        if self._is_stopping and not self._running:  # no lease is out, so no slot will ever become free
            self._fail(self._queue.waiting(), Unavailable("the server stopped; send the request to another one"))
        self._metrics.queue_depth(self._queue.num_samples, self._queue.num_tokens)
        self._is_woken = False
        if not self._running and not self._queue.num_samples:
            self._is_idle.set()

    def _form(self) -> Batch | None:
        """The next batch, with a slot for each of its adapters; None if nothing can run now."""
        batch = _Forming(self._config)
        while (sample := self._queue.next()) and batch.has_room(sample):
            if _is_dead(sample):
                self._expire(sample)
            elif batch.has_leases(sample) or self._lease(sample, batch):
                self._queue.take(sample)
                batch.add(sample)
            elif sample is self._blocked:
                if batch.samples:
                    self._join(batch)
                break
        return Batch(batch.samples, batch.leases) if batch.samples else None

    def _lease(self, sample: Sample, batch: _Forming) -> bool:
        """Get every part of the target of `sample` a slot, or none.

        If one cannot have a slot at all, everybody waiting for this target hears so.
        """
        if sample is self._blocked:
            return False
        gained: dict[str, SlotLease] = {}
        try:
            for part in sample.target.parts:
                if part.digest not in batch.leases and part.digest not in gained:
                    lease = self._acquire(part)
                    if lease is None:
                        return self._block(sample, gained, is_alone=not (self._running or batch.leases))
                    gained[part.digest] = lease
        except Exception as error:
            _give_back(gained)
            self._fail(self._queue.waiting_for(sample.digest), _as_ours(error, "placing the adapter failed"))
            return False
        batch.leases.update(gained)
        return True

    def _block(self, sample: Sample, gained: dict[str, SlotLease], *, is_alone: bool) -> bool:
        """There is no room for every part of `sample` now; what it got is given back."""
        _give_back(gained)  # this may wake us, so what is blocked is said afterwards
        if gained and is_alone:
            parts = ", ".join(part.manifest.name for part in sample.target.parts)
            message = f"{parts} do not fit on the device together; raise cache.device_bytes or unpin some adapters"
            self._fail(self._queue.waiting_for(sample.digest), Overloaded(message, retry_after_s=5.0))
        else:
            self._blocked = sample
        return False

    def _join(self, batch: _Forming) -> None:
        """Fill up with samples whose adapter has a slot in this batch; a blocked sample loses nothing by that."""
        for sample in self._queue.waiting():
            if not batch.has_leases(sample):
                continue
            if batch.has_room(sample) and not _is_dead(sample):
                self._queue.take(sample)
                batch.add(sample)

    # running batches

    async def _compute(self, batch: Batch) -> None:
        outcomes: Sequence[Outcome] = ()
        error: AdapterdError = Internal("the batch failed; try again")
        has_failed = True
        try:
            outcomes = await self._run(batch)
            has_failed = len(outcomes) != len(batch.samples) or batch in self._tainted
        except asyncio.CancelledError:
            error = Unavailable("the server stopped; try again")
            raise
        except Exception as failure:
            error = _as_ours(failure, "the batch failed")
        finally:
            self._end(batch, [error] * len(batch.samples) if has_failed else outcomes, has_failed)

    def _end(self, batch: Batch, outcomes: Sequence[Outcome], has_failed: bool) -> None:
        """Answer the samples of a batch and give its slots back."""
        del self._running[batch]
        self._tainted.discard(batch)
        if has_failed:
            fresh = {digest for digest, lease in batch.leases.items() if lease.is_fresh}
            self._tainted.update(other for other in self._running if fresh & other.leases.keys())
        for sample, outcome in zip(batch.samples, outcomes, strict=True):
            if isinstance(outcome, DeadlineExceeded):  # the runner left it out of the pass
                self._count_dropped(is_late=not sample.reply.done() or _is_late(sample))
            _resolve(sample, outcome)
        for lease in batch.leases.values():
            lease.release(failed=has_failed)
        done = next((outcome for outcome in outcomes if isinstance(outcome, SampleOutput)), None)
        if done:
            info = done.batch
            self._metrics.batch_done(info.num_samples, info.num_tokens, info.num_adapters, done.compute_s)
        self.notify()


class _Forming:
    """A batch that is still open."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self.samples: list[Sample] = []
        self.leases: dict[str, SlotLease] = {}
        self.num_tokens = 0

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.num_tokens += _rows(sample)

    def has_leases(self, sample: Sample) -> bool:
        return all(part.digest in self.leases for part in sample.target.parts)

    def has_room(self, sample: Sample) -> bool:
        """The first sample always fits: one that is longer than the budget runs alone."""
        budget = self._config.max_batch_tokens or UNMEASURED_BATCH_TOKENS
        fits = self.num_tokens + _rows(sample) <= budget
        return not self.samples or (fits and len(self.samples) < self._config.max_batch_samples)


def _rows(sample: Sample) -> int:
    """Tokens that the last layers compute for a sample: each branch of a Parallel has its own."""
    return sample.num_tokens * len(sample.target.branches)


def _give_back(leases: dict[str, SlotLease]) -> None:
    """Slots that no batch is going to fill."""
    for lease in leases.values():
        lease.release(failed=lease.is_fresh)


def _resolve(sample: Sample, outcome: Outcome) -> None:
    """Answer `sample`, unless its caller has left."""
    if sample.reply.done():
        return
    if isinstance(outcome, AdapterdError):
        sample.reply.set_exception(copy.copy(outcome))  # each caller raises its own: a traceback grows as it rises
        sample.reply.exception()  # a caller who is cancelled at this very moment never looks; that is no leak
    else:
        sample.reply.set_result(outcome)


def _is_late(sample: Sample) -> bool:
    return sample.deadline is not None and time.monotonic() + CLOCK_S >= sample.deadline


def _is_dead(sample: Sample) -> bool:
    """Nobody waits for it any more."""
    return sample.reply.done() or _is_late(sample)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before compute; allow more time")


def _as_ours(error: Exception, event: str) -> AdapterdError:
    """What the callers of the failed samples are told; a stranger's message stays in the log."""
    if isinstance(error, AdapterdError):
        return error
    log.error("%s", event, exc_info=error)
    return Internal(f"{event}; try again")
