"""Stage 4: choose which samples run next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from server.config import SchedulerConfig
from server.core import Adapter, Batch, Sample, SampleOutput, SlotLease
from server.errors import (
    AdapterdError,
    DeadlineExceeded,
    DeviceFault,
    Internal,
    NonFinite,
    OutOfDeviceMemory,
    Overloaded,
    Unavailable,
)
from server.ledger import Pace
from server.metrics import Metrics
from server.scheduler.fairness import DeficitRoundRobin
from server.scheduler.forming import Budget, Forming
from server.scheduler.progress import Progress
from server.scheduler.quarantine import Quarantine
from server.scheduler.queues import Queue
from server.scheduler.replies import Outcome, as_ours, is_dead, is_late, resolve, too_late

MAX_RUNNING = 2  # one batch computes, the next waits at the runner, which takes them one after the other
LEAD_S = 0.02  # before the one ends, for the next to be formed: what comes until then need not wait for the one after
BUSY_BATCHES = 2  # full ones: one that runs, and one that is formed while it does

Acquire = Callable[[Adapter | None], SlotLease | None]
Run = Callable[[Batch], Awaitable[Sequence[Outcome]]]


class Scheduler:
    """Holds samples until the runner has room, then hands it batches. All on the event loop's thread.

    Whatever changes what can be done (a sample came or left, a batch ended, a slot may be free) calls `_wake`. `_pump`
    then runs once, at the end of that round of the loop, so samples that arrive together ride together.

    acquire     leases a device slot; None: no room until `notify`; raises: this adapter cannot be served now
    run         computes a batch: when it returns, every slot that was unwritten holds its adapter
    weight_of   share of the device by tenant, while others wait too
    on_pace     told after every batch, see `server.ledger.Pace`
    on_batch    told of every batch that was computed, with its seconds
    on_fault    told once that the device answers nothing any more
    """

    def __init__(
        self,
        config: SchedulerConfig,
        acquire: Acquire,
        run: Run,
        metrics: Metrics,
        *,
        weight_of: Callable[[str], float] = lambda tenant: 1.0,
        on_pace: Callable[[Pace], None] = lambda pace: None,
        on_batch: Callable[[Batch, float], None] = lambda batch, seconds: None,
        on_fault: Callable[[DeviceFault], None] = lambda fault: None,
    ) -> None:
        self._config = config
        self._acquire = acquire
        self._run = run
        self._metrics = metrics
        self._on_pace = on_pace
        self._on_batch = on_batch
        self._on_fault = on_fault

        self._turns = DeficitRoundRobin(weight_of=weight_of)
        self._queue = Queue(self._turns)
        self._quarantine = Quarantine(time.monotonic)
        self._budget = Budget(config)
        self._progress = Progress()
        self._timer: asyncio.TimerHandle | None = None  # until the next batch is formed
        self._fault: DeviceFault | None = None
        self._blocked: Sample | None = None  # the one for which there was no slot
        self._running: dict[Batch, asyncio.Task[None]] = {}
        self._tainted: dict[Batch, set[str]] = {}  # running; digests whose slots may not have been written before
        self._written: dict[Batch, set[str]] = {}  # running in parts; digests whose slots hold their adapter by now

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

        Raises DeadlineExceeded when its time runs out in the queue, Unavailable while stopped, Quarantined while its
        adapter is left alone, and whatever became of its batch.
        """
        if self._fault:
            raise self._fault
        if self._is_stopping:
            raise Unavailable("the server is stopping; send the request to another one")
        self._quarantine.check(_key(sample))
        sample.enqueued_at = time.monotonic()
        if is_late(sample):
            self._metrics.expired("queue")
            raise too_late()
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
        assert self._tainted.keys() <= self._running.keys()

    # leaving the queue without a batch

    def _start_timer(self, sample: Sample) -> asyncio.TimerHandle | None:
        if sample.deadline is None:
            return None
        return asyncio.get_running_loop().call_at(sample.deadline, self._expire, sample)

    def _expire(self, sample: Sample) -> None:
        """The deadline has come; a sample that is in a batch already is left alone."""
        if sample in self._queue:
            self._drop(sample)
            resolve(sample, too_late())

    def _drop(self, sample: Sample) -> None:
        self._queue.remove(sample)
        self._count_dropped(is_late=is_late(sample))
        self._wake()

    def _count_dropped(self, *, is_late: bool) -> None:
        if is_late:
            self._metrics.expired("queue")
        else:
            self._metrics.cancelled()

    def _fail(self, samples: Iterable[Sample], error: AdapterdError) -> None:
        for sample in samples:
            self._queue.remove(sample)
            resolve(sample, error)

    # forming batches

    def _wake(self) -> None:
        self._is_idle.clear()
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        while self._is_time() and (batch := self._form()):
            if not self._running:
                self._progress.begin(batch.num_tokens)
            self._running[batch] = asyncio.create_task(self._compute(batch), name=f"batch {batch.id}")
        if self._is_stopping and not self._running:  # no lease is out, so no slot will ever become free
            self._fail(self._queue.waiting(), Unavailable("the server stopped; send the request to another one"))
        self._metrics.queue_depth(self._queue.num_samples, self._queue.num_tokens)
        self._is_woken = False
        if not self._running and not self._queue.num_samples:
            self._is_idle.set()

    def _is_time(self) -> bool:
        """To form a batch: there is none, or the one that computes ends soon. If it does not, `_pump` runs then."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if len(self._running) != 1 or not self._queue.num_samples:
            return len(self._running) < MAX_RUNNING
        wait_s = self._progress.left_s() - LEAD_S
        if wait_s > 0:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)
        return wait_s <= 0

    def _form(self) -> Batch | None:
        """The next batch, with a slot for each of its adapters; None if nothing can run now."""
        batch = Forming(self._config.max_batch_samples, self._budget.tokens)
        while (sample := self._queue.next()) and batch.has_room(sample):
            if is_dead(sample):
                self._expire(sample)
            elif batch.has_leases(sample) or self._lease(sample, batch):
                self._queue.take(sample)
                batch.add(sample)
            elif sample is self._blocked:
                if batch.samples:
                    self._join(batch)
                break
        if not batch.samples:
            return None
        # Slots that a batch was to write which is being run in parts: it may not have come to them.
        late = {digest for other, written in self._written.items() for digest in other.unwritten - written}
        fresh = {digest for digest, lease in batch.leases.items() if lease.is_fresh}
        return Batch(batch.samples, batch.leases, frozenset(fresh | late & batch.leases.keys()))

    def _lease(self, sample: Sample, batch: Forming) -> bool:
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
            self._fail(self._queue.waiting_for(sample.digest), as_ours(error, "placing the adapter failed"))
            return False
        batch.leases.update(gained)
        return True

    def _block(self, sample: Sample, gained: dict[str, SlotLease], *, is_alone: bool) -> bool:
        """There is no room for every part of `sample` now; what it got is given back."""
        _give_back(gained)  # this may wake us, so what is blocked is said afterwards
        if gained and is_alone:
            number = len(sample.target.parts)
            message = f"the {number} parts do not fit on the device together; raise device_bytes or unpin some adapters"
            self._fail(self._queue.waiting_for(sample.digest), Overloaded(message, retry_after_s=5.0))
        else:
            self._blocked = sample
        return False

    def _join(self, batch: Forming) -> None:
        """Fill up with samples whose adapter has a slot in this batch; a blocked sample loses nothing by that."""
        for sample in self._queue.waiting():
            if not batch.has_leases(sample):
                continue
            if batch.has_room(sample) and not is_dead(sample):
                self._queue.take(sample)
                batch.add(sample)

    # running batches

    async def _compute(self, batch: Batch) -> None:
        """Run a batch, in parts if it fails as a whole, and answer its samples."""
        outcomes: list[Outcome] = [Unavailable("the server stopped; try again") for _ in batch.samples]
        written: set[str] = set()
        try:
            outcomes = await self._run_parts(batch, written)
        except DeviceFault as fault:
            outcomes = [fault for _ in batch.samples]
            self._break_off(fault)
        finally:
            self._end(batch, outcomes, written)

    async def _run_parts(self, batch: Batch, written: set[str]) -> list[Outcome]:
        """Outcomes of a batch. One that fails is halved until the guilty sample is alone; the others are answered.

        written   gains the digests whose slots are known to hold their adapter
        raises    DeviceFault
        """
        outcomes, error = await self._run_once(batch)
        if unwritten := self._tainted.pop(batch, None):  # it may have read slots that the batch before never wrote
            return await self._run_parts(replace(batch, unwritten=batch.unwritten | unwritten), written)
        if error is None:
            written |= batch.unwritten
            return list(outcomes)
        self._taint(batch)
        if len(batch.samples) == 1:
            return [error]
        if batch in self._running:
            self._written[batch] = written
        if isinstance(error, OutOfDeviceMemory):
            self._budget.lower(batch.num_tokens)
        self._metrics.batch_split()
        half = len(batch.samples) // 2
        parts = (batch.samples[:half], batch.samples[half:])
        return [outcome for part in parts for outcome in await self._run_parts(_part(batch, part), written)]

    async def _run_once(self, batch: Batch) -> tuple[Sequence[Outcome], AdapterdError | None]:
        """Outcomes, or why there are none: not raised, for a traceback's frames would hold the tensors that failed."""
        try:
            # the runner takes one after the other
            async with asyncio.timeout(self._config.batch_timeout_s * len(self._running)):
                outcomes = await self._run(batch)
        except DeviceFault:
            raise
        except TimeoutError:
            raise DeviceFault(
                f"the device computes one batch for more than batch_timeout_s {self._config.batch_timeout_s:g}"
            ) from None
        except Exception as failure:
            return (), as_ours(failure, "the batch failed")
        if len(outcomes) != len(batch.samples):
            return (), Internal("the batch failed; try again")
        return outcomes, None

    def _taint(self, batch: Batch) -> None:
        """What runs behind a batch that failed may have found slots that it was to write: that is run again."""
        for other in self._running:
            if shared := batch.unwritten & other.leases.keys() - other.unwritten:
                self._tainted.setdefault(other, set()).update(shared)

    def _break_off(self, fault: DeviceFault) -> None:
        """Nothing can be computed any more: everybody who waits hears so."""
        if self._fault is None:
            self._fault = fault
            self._fail(self._queue.waiting(), fault)
            for batch in self._running:
                for sample in batch.samples:
                    resolve(sample, fault)
            self._on_fault(fault)

    def _end(self, batch: Batch, outcomes: Sequence[Outcome], written: set[str]) -> None:
        """Answer the samples of a batch and give its slots back."""
        del self._running[batch]
        if following := next(iter(self._running), None):
            self._progress.begin(following.num_tokens)
        self._tainted.pop(batch, None)
        self._written.pop(batch, None)
        for sample, outcome in zip(batch.samples, outcomes, strict=True):
            if isinstance(outcome, DeadlineExceeded):  # the runner left it out of the pass
                self._count_dropped(is_late=not sample.reply.done() or is_late(sample))
            self._judge(sample, outcome)
            resolve(sample, outcome)
        for digest, lease in batch.leases.items():
            lease.release(failed=lease.is_fresh and digest not in written)
        for done in {outcome.batch.id: outcome for outcome in outcomes if isinstance(outcome, SampleOutput)}.values():
            info = done.batch
            self._metrics.batch_done(info.num_samples, info.num_tokens, info.num_adapters, done.compute_s)
            self._budget.grow()
            self._measure(done)
            self._on_batch(batch, done.compute_s)
        tenants = {sample.tenant for other in self._running for sample in other.samples}
        self._on_pace(
            Pace(self._progress.tokens_per_s, self._turns.weights(tenants), BUSY_BATCHES * self._budget.tokens)
        )
        self.notify()

    def _measure(self, done: SampleOutput) -> None:
        """The device's pace, by batches that fill it: smaller ones take nearly as long and would tell far less."""
        info = done.batch
        if info.num_tokens >= self._budget.tokens / 2 or info.num_samples >= self._config.max_batch_samples / 2:
            self._progress.measure(info.num_tokens, done.compute_s)

    def _judge(self, sample: Sample, outcome: Outcome) -> None:
        """An adapter that fails is left alone for a while, and one that answers is trusted again."""
        if isinstance(outcome, SampleOutput):
            self._quarantine.answered(_key(sample))
        elif isinstance(outcome, Internal | NonFinite):
            self._quarantine.failed(_key(sample), outcome.message)


def _part(batch: Batch, samples: list[Sample]) -> Batch:
    """Some of the samples of a batch, with the leases that they need."""
    digests = {part.digest for sample in samples for part in sample.target.parts}
    leases = {digest: lease for digest, lease in batch.leases.items() if digest in digests}
    return Batch(samples, leases, batch.unwritten & digests)


def _key(sample: Sample) -> tuple[str, str]:
    return sample.tenant, sample.digest


def _give_back(leases: dict[str, SlotLease]) -> None:
    """Slots that no batch is going to fill."""
    for lease in leases.values():
        lease.release(failed=lease.is_fresh)
