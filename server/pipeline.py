"""The path of one request. Read this file first: it is the only one that knows the order of the stages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from server.admission import Admission
from server.core import Reply, Request, SampleOutput, Tenant, Timings, TokenInput
from server.engine import Answerer, Computed, Engine, Work
from server.errors import DeadlineExceeded
from server.metrics import Metrics
from server.results import Question, gather, shape, spread, worded
from server.stopwatch import Stopwatch
from server.tokenizer import Tokenizer

# Shaping results of more tokens would keep the event loop from its other callers for milliseconds.
MAX_INLINE_TOKENS = 256
MAX_INLINE_VALUES = 1 << 14  # a language model gives a whole vocabulary for each mask


class Pipeline:
    """`engine` computes in this process or in another; this class does not know which."""

    def __init__(self, admission: Admission, tokenizer: Tokenizer, engine: Engine, metrics: Metrics) -> None:
        self.admission = admission
        self.tokenizer = tokenizer
        self.engine = engine
        self.metrics = metrics

    async def infer(self, request: Request) -> Reply:
        """Computed every input of `request`, or raise one of our errors. A cancelled caller leaves nothing behind."""
        watch = Stopwatch(request.deadline, self.metrics)
        try:
            async with asyncio.timeout_at(request.deadline) as limit, self.admission.enter(request) as place:  # 1
                # texts for an unknown name are not worth tokenizing
                await self.engine.check(request.adapter, request.tenant.name)
                watch.lap("admit")
                with watch.stage("tokenize"):
                    encodings = await self.tokenizer.encode(spread(request.inputs), request.parameters)  # 2
                num_tokens = sum(encoding.num_tokens for encoding in encodings)
                place.correct(num_tokens)
                questions = gather(request.inputs, encodings)
                computed = await self.engine.compute(_work(request, questions))  # 3 to 5
                num_values = sum(branch.values.size for output in computed.outputs for branch in output.branches)
                if num_tokens > MAX_INLINE_TOKENS or num_values > MAX_INLINE_VALUES:
                    return await asyncio.to_thread(self._reply, request, questions, computed, watch)
                return self._reply(request, questions, computed, watch)
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("the deadline passed before the answer; allow more time") from None
            raise

    async def describe(self, adapter: str, version: str, tenant: Tenant) -> Answerer:
        """What would answer a request. It may have to be loaded, so this is let in as a request of one token is."""
        asking = Request(adapter, (TokenInput((0,)),), tenant=tenant, version=version)
        async with self.admission.enter(asking):
            await self.engine.check(adapter, tenant.name)
            return await self.engine.describe(adapter, tenant.name, version)

    def _reply(self, request: Request, questions: Sequence[Question], computed: Computed, watch: Stopwatch) -> Reply:
        left, by = iter(computed.outputs), computed.answerer
        naming = (self.tokenizer.text_of, self.tokenizer.base.mask_token_id)
        return Reply(
            adapter=request.adapter,
            digest=by.digest,
            results=tuple(
                shape(
                    [next(left) for _ in question.encodings], question, by.heads, by.names, request.parameters, *naming
                )
                for question in worded(questions, by.heads, self.tokenizer.base)
            ),
            timings=_timings(computed, watch),
        )


def _work(request: Request, questions: Sequence[Question]) -> Work:
    return Work(
        adapter=request.adapter,
        questions=tuple(questions),
        parameters=request.parameters,
        deadline=request.deadline,
        heads=request.heads,
        skip_layers=request.skip_layers,
        sticky_key=request.sticky_key,
        priority=request.priority,
        version=request.version,
        tenant=request.tenant.name,
    )


def _timings(computed: Computed, watch: Stopwatch) -> Timings:
    outputs: Sequence[SampleOutput] = computed.outputs
    return Timings(
        admit_s=watch.seconds["admit"],
        tokenize_s=watch.seconds["tokenize"],
        ready_s=computed.ready_s,
        queue_s=max(output.queue_s for output in outputs),
        compute_s=max(output.compute_s for output in outputs),
    )
