"""The order of copies and compute on a device: who waits for whom. On a CPU everything is in order as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A point in the work of the copying stream."""


class Streams(Protocol):
    """Copies beside compute. Compute is what the calling thread's current stream does."""

    def copying(self) -> AbstractContextManager[None]:
        """What is issued inside runs beside compute."""

    def mark(self) -> Mark | None:
        """The end of what was issued as copies so far; None where there is nothing to wait for."""

    def wait(self, mark: Mark) -> None:
        """Compute that is issued from now on runs after `mark`."""

    def lend(self, tensor: Tensor) -> None:
        """Compute may read a tensor that copies made: once gone, its memory waits for compute issued so far."""


class InOrder:
    """Streams of a device that has none."""

    def copying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def mark(self) -> None:
        return None

    def wait(self, mark: Mark) -> None:
        raise AssertionError("nothing here gives out marks")

    def lend(self, tensor: Tensor) -> None:
        pass


class CudaStreams:
    """A second stream for copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def copying(self) -> Iterator[None]:
        with torch.cuda.stream(self._copies):
            yield

    def mark(self) -> torch.cuda.Event:
        event: torch.cuda.Event = self._copies.record_event()
        return event

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(mark)

    def lend(self, tensor: Tensor) -> None:
        tensor.record_stream(torch.cuda.current_stream(self._device))


def streams(device: torch.device) -> Streams:
    return CudaStreams(device) if device.type == "cuda" else InOrder()
