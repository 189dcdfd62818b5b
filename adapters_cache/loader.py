"""One load: origin -> verified and lowered -> host tier, in time. On the event loop; the work is done in threads."""

from __future__ import annotations

import asyncio
import logging

import torch

from adapters_cache.build import build_adapter
from adapters_cache.draft import BaseWeights
from adapters_cache.failures import Failures, again
from adapters_cache.flight import Flight
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.host import HostLease, HostTier
from adapters_cache.origin import FolderOrigin
from adapters_cache.registry import Record
from adapters_cache.residency import Residency
from server.core import Adapter, BaseInfo
from server.errors import AdapterChanged, AdapterdError, AdapterRefused, Internal, Unavailable

log = logging.getLogger(__name__)
DIGEST_CHARS = 12  # of a digest in a message


class Loader:
    """Brings adapters from the origin into the host tier. Which name points where is not its business."""

    def __init__(
        self,
        origin: FolderOrigin,
        host: HostTier,
        residency: Residency,
        base: BaseInfo,
        dtype: torch.dtype,
        *,
        timeout_s: float,
        weights: BaseWeights | None = None,
        pin_memory: bool,
    ) -> None:
        self._origin, self._host, self._residency = origin, host, residency
        self._base, self._dtype, self._weights, self._pin_memory = base, dtype, weights, pin_memory
        self._timeout_s = timeout_s
        self._failures = Failures()

    async def load(self, record: Record, flight: Flight) -> HostLease:
        """Read, verify and lower an adapter, and take it into the host tier.

        A flight that is not explicit gives what the name stands for, or nothing: it raises AdapterChanged if that is
        gone from the origin, and what was refused a moment ago is refused again without reading it.
        Raises AdapterRefused and its kinds, Overloaded, Unavailable after the time limit.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._host.put(await self._read(record, flight))
        except TimeoutError:
            raise Unavailable(
                f"adapter {record.name!r} took longer to load than load_timeout_s {self._timeout_s:g}; try again later"
            ) from None
        except AdapterdError:
            raise
        except Exception as error:
            log.exception("adapter %s cannot be loaded", record.name)
            raise Internal(f"adapter {record.name!r} cannot be loaded: {type(error).__name__}") from error

    def forget_failure(self, name: str) -> None:
        """Have the next load read the origin, whatever came of the last one."""
        self._failures.forget(name)

    async def _read(self, record: Record, flight: Flight) -> Adapter:
        known = None if flight.is_explicit else self._failures.find(record.name)
        reading = await self._origin.read(record.source, record.name, self._build, known=known, on_begin=flight.begin)
        if known is not None and reading.found is known.error:
            raise again(known.error)
        try:
            return self._accept(reading.found, record, flight)
        except AdapterRefused as error:
            self._failures.remember(record.name, reading.state, error)
            raise

    def _build(self, checkpoint: Checkpoint) -> Adapter:
        return build_adapter(checkpoint, self._base, self._dtype, self._weights, pin_memory=self._pin_memory)

    def _accept(self, found: Adapter | AdapterRefused, record: Record, flight: Flight) -> Adapter:
        """Raises AdapterRefused unless this can be served, under this name."""
        if isinstance(found, AdapterRefused):
            raise found
        self._host.check_size(found)
        self._residency.check_size(found)
        # a read that something newer has overtaken moves no name: it serves those who waited for it
        is_moving = flight.generation > record.served
        if is_moving and not flight.is_explicit and record.digest and found.digest != record.digest:
            raise AdapterChanged(
                f"adapter {record.name!r} changed at its origin since {record.digest[:DIGEST_CHARS]}; call Load to"
                " move the name to what is there now, or put the old files back",
                adapter=record.name,
            )
        return found
