"""Small passes replayed from graphs: a batch of a few texts computes for less time than its kernels take to launch.

A graph is captured for a bucket of tokens and replayed for every batch that fits: ids, offsets and tables of addresses
lie in a buffer of fixed place and shape, which each batch overwrites. What a bucket has too many of is padding: tokens
of one more sample that nobody reads, samples of length 0, tiles without rows. Which adapters take part is in the tables
alone, so a graph outlives them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.packing import Rows
from server.model.phases import HostPhase
from server.model.sites import Phase
from server.model.upload import num_bytes, upload

log = logging.getLogger(__name__)
Forward = Callable[[Sequence[Phase]], Tensor]
Pass = Callable[[], Tensor]
Capture = Callable[[Pass], Pass]  # gives what repeats a pass on whatever its buffers then hold

BUCKETS = (32, 64, 128, 256, 512)  # tokens; beyond, compute takes longer than launching
TOKENS_PER_SAMPLE = 8  # a bucket has room for one sample per so many tokens
MAX_HIDDEN = 2048  # wider rows are not for the kernels
MAX_GRAPHS = 64  # each holds its buffer and result; when there are so many, further kinds of batches are launched


class _Entry:
    """One bucket and variant.

    buffer   uint8, what batches are copied to
    phase    of the batch under way, for what is not captured: views of the buffer, and offsets on the host
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.phase: Phase | None = None
        self.replay: Pass | None = None

    def work(self, forward: Forward) -> Tensor:
        assert self.phase is not None
        return forward([self.phase])


class GraphedForward:
    """The passes that graphs can do. Runner thread only."""

    def __init__(self, device: torch.device, capture: Capture) -> None:
        self._device, self._capture = device, capture
        self._entries: dict[object, _Entry] = {}
        self._is_off = False

    def __len__(self) -> int:
        return len(self._entries)

    def run(self, phases: Sequence[HostPhase], forward: Forward) -> Tensor | None:
        """Hidden states [T, H], to be read before the next pass; None where this pass is not for a graph."""
        first, bucket = phases[0], bucket_of(phases)
        if bucket is None or first.prepared is None:
            return None
        rows, launches = _padded(first.rows, bucket), first.prepared.padded(bucket, max_samples(bucket) + 1)
        arrays = [*rows.arrays, *launches.arrays]
        entry = self._entry((bucket, launches.variant), num_bytes(arrays))
        if entry is None:
            return None
        tensors = upload(arrays, self._device, entry.buffer)
        packed = rows.on(tensors[: len(rows.arrays)], bucket)
        entry.phase = Phase(0, packed, first.plan, launches=launches.on(tensors[len(rows.arrays) :]))
        if entry.replay is None:
            entry.replay = self._captured(partial(entry.work, forward))
        hidden = entry.replay()[: first.rows.num_tokens] if entry.replay is not None else None
        entry.phase = None  # it would keep slots alive
        return hidden

    def _captured(self, work: Pass) -> Pass | None:
        """None where this fails; unless it lacked memory it is not tried again, and passes are launched."""
        try:
            return self._capture(work)
        except torch.OutOfMemoryError:
            log.warning("no memory to capture a pass now; it is launched")
            return None
        except RuntimeError:
            log.exception("a pass could not be captured; from now on none is replayed")
            self._is_off = True
            return None

    def _entry(self, key: object, size: int) -> _Entry | None:
        if self._is_off:
            return None
        if key not in self._entries and len(self._entries) < MAX_GRAPHS:
            self._entries[key] = _Entry(size, self._device)
        return self._entries.get(key)


def bucket_of(phases: Sequence[HostPhase]) -> int | None:
    """The tokens that a pass is padded to, None where its work is not the same for all passes of that size."""
    first = phases[0]
    if len(phases) > 1 or first.prepared is None or not first.prepared.is_whole or not first.plan.is_static:
        return None
    num_tokens, num_samples = first.rows.num_tokens, len(first.rows.offsets) - 1
    fitting = (b for b in BUCKETS if num_tokens <= b and num_samples <= max_samples(b))
    return next(fitting, None)


def max_samples(bucket: int) -> int:
    return bucket // TOKENS_PER_SAMPLE


def _padded(rows: Rows, bucket: int) -> Rows:
    """The same rows, one more with all tokens that are missing, and empty ones."""
    offsets = np.full(max_samples(bucket) + 2, bucket, dtype=np.int32)
    offsets[: len(rows.offsets)] = rows.offsets

    def filled(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.pad(tokens, (0, bucket - len(tokens)))

    return Rows(filled(rows.ids), filled(rows.positions), filled(rows.types), offsets)


class CudaCapture:
    """Captures into CUDA graphs that share their working memory: they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, work: Pass) -> Pass:
        # A capture that fails may not give the stream back by itself.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            self._warm_up(work)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = work()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    def _warm_up(self, work: Pass) -> None:
        """What is compiled or allocated on first use must not be part of the graph."""
        compute = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(compute)
        with torch.cuda.stream(aside):
            work()
        compute.wait_stream(aside)


def graphs(device: torch.device, dtype: torch.dtype, hidden_size: int) -> GraphedForward | None:
    """None where passes cannot be captured: attention to float32 is called with lengths that the host knows."""
    if device.type != "cuda" or dtype is torch.float32 or hidden_size > MAX_HIDDEN:
        return None
    return GraphedForward(device, CudaCapture(device))
