"""Stage 5: the one thread that touches the device: place adapters, pack, route, forward, heads, reply."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core import Adapter, Batch, BatchInfo, Sample, SampleOutput, Tier
from server.errors import AdapterdError, DeadlineExceeded, Internal
from server.metrics import Metrics
from server.model.base import Base
from server.model.heads import pool, run_head, to_host
from server.model.packing import PackedBatch, Packer
from server.model.routing import RoutingPlan
from server.model.slots import SlotBank

log = logging.getLogger(__name__)
Outcome = SampleOutput | AdapterdError


@dataclass(slots=True)
class _Work:
    batch: Batch
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Outcome]]


class Runner:
    """Executes batches one after the other, in the order in which `run` was called."""

    def __init__(self, base: Base, bank: SlotBank, metrics: Metrics) -> None:
        self._base = base
        self._bank = bank
        self._metrics = metrics
        self._packer = Packer(base.info, base.family.position_offset(base.model.config), base.device)
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="runner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what was handed over, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    async def run(self, batch: Batch) -> list[Outcome]:
        """Outcome of every sample, in the order of `batch.samples`. Raises Internal if the whole batch failed."""
        loop = asyncio.get_running_loop()
        work = _Work(batch, loop, loop.create_future())
        self._queue.put(work)
        return await work.done

    def _loop(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                outcomes: list[Outcome] | Exception = self.execute(work.batch)
            except Exception as error:  # the batch's callers must hear of it; the thread must live on
                log.exception("batch %d failed", work.batch.id)
                outcomes = error if isinstance(error, AdapterdError) else Internal("the batch failed on the device")
            work.loop.call_soon_threadsafe(_resolve, work.done, outcomes)

    @torch.inference_mode()
    def execute(self, batch: Batch) -> list[Outcome]:
        """Run one batch on the calling thread. Samples whose caller is gone or late are left out of the pass."""
        started = time.monotonic()
        for lease in batch.leases.values():
            if lease.is_fresh and lease.adapter is not None:
                self._place(lease.slot, lease.adapter)
        outcomes: list[Outcome] = [_late(sample) for sample in batch.samples]
        live = [i for i, sample in enumerate(batch.samples) if _is_wanted(sample, started)]
        slots = {i: batch.leases[batch.samples[i].digest].slot for i in live}
        # Equal styles, then equal adapters, then equal lengths lie next to each other.
        live.sort(key=lambda i: (self._order(slots[i]), slots[i], batch.samples[i].num_tokens))
        if not live:
            return outcomes
        samples = [batch.samples[i] for i in live]
        packed = self._packer.pack([sample.encoding for sample in samples])
        plan = RoutingPlan(self._bank, [[slots[i] for i in live]], packed.offsets)
        hidden = self._base.forward(packed, plan)
        values = to_host(self._answers(samples, hidden, packed, plan))
        extras = to_host(self._extras(samples, hidden, packed))
        info = BatchInfo(batch.id, len(samples), packed.num_tokens, len({*slots.values()} - {0}))
        compute_s = time.monotonic() - started
        wanted = iter(extras)
        for i, sample, value in zip(live, samples, values, strict=True):
            hidden_and_pooler = [next(wanted).numpy() for _ in range(self._num_extras(sample))]
            outcomes[i] = SampleOutput(value.numpy(), info, started - sample.enqueued_at, compute_s, *hidden_and_pooler)
        return outcomes

    def _place(self, slot: int, adapter: Adapter) -> None:
        started = time.monotonic()
        self._bank.write(slot, adapter)
        self._metrics.load_done(Tier.DEVICE, time.monotonic() - started, "ok")

    def _order(self, slot: int) -> int:
        return self._bank[slot].order if slot else -1

    def _answers(
        self, samples: Sequence[Sample], hidden: Tensor, packed: PackedBatch, plan: RoutingPlan
    ) -> list[Tensor]:
        """Per sample, in packed order: the logits of its head or its pooled vector."""
        spans = packed.spans
        answers: list[Tensor] = []
        for slot, indices in plan.groups():
            head = self._bank[slot].head if slot else None
            if head is None:
                answers += [pool(hidden, spans[i], samples[i].pooling) for i in indices]
            else:
                answers += run_head(head, hidden, [spans[i] for i in indices], self._base.pooler)
        return answers

    def _num_extras(self, sample: Sample) -> int:
        return (2 if self._base.pooler is not None else 1) if sample.return_hidden else 0

    def _extras(self, samples: Sequence[Sample], hidden: Tensor, packed: PackedBatch) -> list[Tensor]:
        """Token vectors and pooler output of the samples that asked for them."""
        extras: list[Tensor] = []
        for sample, (start, end) in zip(samples, packed.spans, strict=True):
            if sample.return_hidden:
                extras.append(hidden[start:end])
                if self._base.pooler is not None:
                    extras.append(self._base.pooler(hidden[None, start:end])[0])
        return extras


def _is_wanted(sample: Sample, now: float) -> bool:
    return not sample.reply.done() and (sample.deadline is None or now < sample.deadline)


def _late(sample: Sample) -> AdapterdError:
    return DeadlineExceeded("the deadline passed before compute")


def _resolve(done: asyncio.Future[list[Outcome]], outcomes: list[Outcome] | Exception) -> None:
    if done.cancelled():
        return
    if isinstance(outcomes, Exception):
        done.set_exception(outcomes)
    else:
        done.set_result(outcomes)
