"""The path of one request. Read this file first: it is the only one that knows the order of the stages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from server.admission import Admission
from server.core import (
    Encoding,
    Reply,
    Request,
    Sample,
    SampleOutput,
    Target,
    TargetLease,
    Timings,
)
from server.errors import DeadlineExceeded
from server.metrics import Metrics
from server.results import Question, fitted, gather, shape, spread
from server.tokenizer import Tokenizer

# Shaping results of more tokens would keep the event loop from its other callers for milliseconds.
MAX_INLINE_TOKENS = 256
MAX_INLINE_VALUES = 1 << 14  # a language model gives a whole vocabulary for each mask


class Adapters(Protocol):
    def check(self, expression: str) -> None: ...
    async def ready(self, expression: str, heads: Sequence[str], skip_layers: Sequence[int]) -> TargetLease: ...


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
                self.adapters.check(request.adapter)  # texts for an unknown name are not worth tokenizing
                watch.lap("admit")
                with watch.stage("tokenize"):
                    encodings = await self.tokenizer.encode(spread(request.inputs), request.parameters)  # 2
                with watch.stage("ready"):
                    lease = await self.adapters.ready(request.adapter, request.heads, request.skip_layers)  # 3
                try:
                    questions = gather(request.inputs, encodings)
                    questions = fitted(questions, lease.target, request.parameters, self.tokenizer.base)
                    outputs = await self._compute(request, questions, lease.target)  # 4 and 5
                finally:
                    lease.release()
                answered = (request, questions, lease, outputs, watch)
                num_values = sum(branch.values.size for output in outputs for branch in output.branches)
                num_tokens = sum(encoding.num_tokens for encoding in encodings)
                if num_tokens > MAX_INLINE_TOKENS or num_values > MAX_INLINE_VALUES:
                    return await asyncio.to_thread(self._reply, *answered)
                return self._reply(*answered)
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("the deadline passed before the answer; allow more time") from None
            raise

    async def _compute(self, request: Request, questions: Sequence[Question], target: Target) -> list[SampleOutput]:
        """All inputs through the scheduler; the first failure cancels the others."""
        samples = [_sample(request, encoding, target) for question in questions for encoding in question.encodings]
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
        questions: Sequence[Question],
        lease: TargetLease,
        outputs: Sequence[SampleOutput],
        watch: _Stopwatch,
    ) -> Reply:
        left, target = iter(outputs), lease.target
        naming = (self.tokenizer.text_of, self.tokenizer.base.mask_token_id)
        return Reply(
            adapter=request.adapter,
            digest=target.digest if target.parts else self.base_digest,
            results=tuple(
                shape(
                    [next(left) for _ in question.encodings], question, target, lease.names, request.parameters, *naming
                )
                for question in questions
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


def _sample(request: Request, encoding: Encoding, target: Target) -> Sample:
    return Sample(
        encoding=encoding,
        target=target,
        pooling=request.parameters.pooling,
        reply=asyncio.get_running_loop().create_future(),
        deadline=request.deadline,
    )
