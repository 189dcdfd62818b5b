"""The processes that send, so that they share neither an event loop nor a lock with anything else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from types import TracebackType
from typing import Self

import numpy as np

from loadtest.client import START_S, Order, Outcomes, fire, ready
from loadtest.closed_loop import Flood, Flow, flood


class Generators:
    """`num` processes that share each schedule; leave the context to end them."""

    def __init__(self, num: int) -> None:
        self._stack = ExitStack()
        context = get_context("spawn")  # gRPC does not survive a fork
        self._pools = [self._stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(num)]

    def fire(self, order: Order) -> Outcomes:
        """Run an open loop; `order.start_at` is set here."""
        parts = [order.schedule.part(index, len(self._pools)) for index in range(len(self._pools))]
        start_at = time.monotonic() + START_S
        orders = [replace(order, schedule=part, start_at=start_at) for part in parts]
        jobs = [pool.submit(fire, part) for pool, part in zip(self._pools, orders, strict=True)]
        return _together(order, [job.result() for job in jobs])

    def flood(self, order: Flood) -> Flow:
        """Run a closed loop, in one of the processes."""
        return self._pools[0].submit(flood, order).result()

    def __enter__(self) -> Self:
        for job in [pool.submit(ready) for pool in self._pools]:
            job.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _together(order: Order, parts: Sequence[Outcomes]) -> Outcomes:
    """Columns of all parts in the order of the whole schedule."""
    if len(parts) == 1:
        return parts[0]
    num = len(order.schedule)
    place = np.argsort(np.concatenate([np.arange(index, num, len(parts)) for index in range(len(parts))]))
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])[place]
        for name in ("sent_s", "done_s", "code", "num_tokens", "stages", "batch")
    }
    return Outcomes(order.schedule, **columns)
