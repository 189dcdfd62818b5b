"""The path of one request. Read this file first: it is the only one that knows the order of the stages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from server.admission import Admission
from server.core import (
    BASE,
    Adapter,
    AdapterStatus,
    Encoding,
    HostLease,
    Reply,
    Request,
    Sample,
    SampleOutput,
    Timings,
)
from server.errors import DeadlineExceeded
from server.metrics import Metrics
from server.postprocess import check_parameters, shape_result
from server.tokenizer import Tokenizer

# Shaping results of more tokens would keep the event loop from its other callers for milliseconds.
MAX_INLINE_TOKENS = 256


class Adapters(Protocol):
    def get(self, name: str) -> AdapterStatus: ...
    async def ready(self, name: str) -> HostLease: ...


class Scheduler(Protocol):
    async def submit(self, sample: Sample) -> SampleOutput: ...


class Pipeline:
    """base_digest: what a reply carries when the base alone answered."""

    def __init__(
        self,
        admission: Admission,
        tokenizer: Tokenizer,
        adapters: Adapters,
        scheduler: Scheduler,
        metrics: Metrics,
        base_digest: str = "",
    ) -> None:
        self.admission = admission
        self.tokenizer = tokenizer
        self.adapters = adapters
        self.scheduler = scheduler
        self.metrics = metrics
        self.base_digest = base_digest

    async def infer(self, request: Request) -> Reply:
        """Answer every input of `request`, or raise one of our errors. A cancelled caller leaves nothing behind."""
        watch = _Stopwatch(request, self.metrics)
        try:
            async with asyncio.timeout_at(request.deadline) as limit, self.admission.enter(request):  # 1
                if request.adapter != BASE:
                    self.adapters.get(request.adapter)  # raises: texts for an unknown name are not worth tokenizing
                watch.lap("admit")
                with watch.stage("tokenize"):
                    encodings = await self.tokenizer.encode(request.inputs, request.parameters)  # 2
                with watch.stage("ready"):
                    lease = await self.adapters.ready(request.adapter)  # 3
                try:
                    check_parameters(lease.adapter.spec if lease.adapter else None, request.parameters)
                    outputs = await self._compute(request, encodings, lease.adapter)  # 4 and 5
                finally:
                    lease.release()
                answered = (request, encodings, lease.adapter, outputs, watch)
                if sum(encoding.num_tokens for encoding in encodings) > MAX_INLINE_TOKENS:
                    return await asyncio.to_thread(self._reply, *answered)
                return self._reply(*answered)
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("the deadline passed before the answer; allow more time") from None
            raise

    async def _compute(
        self, request: Request, encodings: Sequence[Encoding], adapter: Adapter | None
    ) -> list[SampleOutput]:
        """All inputs through the scheduler; the first failure cancels the others."""
        samples = [_sample(request, encoding, adapter) for encoding in encodings]
        if len(samples) == 1:
            return [await self.scheduler.submit(samples[0])]
        tasks = [asyncio.create_task(self.scheduler.submit(sample)) for sample in samples]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _reply(
        self,
        request: Request,
        encodings: Sequence[Encoding],
        adapter: Adapter | None,
        outputs: Sequence[SampleOutput],
        watch: _Stopwatch,
    ) -> Reply:
        spec = adapter.spec if adapter else None
        return Reply(
            adapter=request.adapter,
            digest=adapter.digest if adapter else self.base_digest,
            results=tuple(
                shape_result(output, encoding, spec, request.parameters)
                for output, encoding in zip(outputs, encodings, strict=True)
            ),
            timings=watch.timings(outputs),
        )


class _Stopwatch:
    """Seconds per stage of one request. Work that ends inside a stage before the queue is counted as dropped."""

    def __init__(self, request: Request, metrics: Metrics) -> None:
        self._deadline = request.deadline
        self._metrics = metrics
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """`stage` ends now."""
        now = time.monotonic()
        self._seconds[stage] = now - self._started
        self._started = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            self._count_dropped(name)
            raise
        self.lap(name)

    def timings(self, outputs: Sequence[SampleOutput]) -> Timings:
        return Timings(
            admit_s=self._seconds["admit"],
            tokenize_s=self._seconds["tokenize"],
            ready_s=self._seconds["ready"],
            queue_s=max(output.queue_s for output in outputs),
            compute_s=max(output.compute_s for output in outputs),
        )

    def _count_dropped(self, stage: str) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._metrics.expired(stage)
        else:
            self._metrics.cancelled()


def _sample(request: Request, encoding: Encoding, adapter: Adapter | None) -> Sample:
    return Sample(
        encoding=encoding,
        adapter=adapter,
        pooling=request.parameters.pooling,
        reply=asyncio.get_running_loop().create_future(),
        deadline=request.deadline,
    )
