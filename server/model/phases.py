"""The phases of a pass on the host, and the one copy that brings them to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from server.model.launches import Prepared
from server.model.packing import Array, Rows
from server.model.routing import RoutingPlan
from server.model.sites import Phase
from server.model.upload import upload


@dataclass(frozen=True, slots=True, eq=False)
class HostPhase:
    """See `Phase`.

    prepared   the launches of the backend, None where it makes them one by one
    """

    layer: int
    rows: Rows
    plan: RoutingPlan
    prepared: Prepared | None = None
    gather: Array | None = None
    origin: Array | None = None

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """What has to get to the device."""
        moves = [x for x in (self.gather, self.origin) if x is not None]
        return [*self.rows.arrays, *moves, *(self.prepared.arrays if self.prepared else ())]

    def on(self, tensors: Sequence[torch.Tensor]) -> Phase:
        """`tensors` are the arrays on the device."""
        rest = iter(tensors)
        packed = self.rows.on([next(rest) for _ in self.rows.arrays])
        gather = None if self.gather is None else next(rest)
        origin = None if self.origin is None else next(rest)
        launches = self.prepared.on(list(rest)) if self.prepared else None
        return Phase(self.layer, packed, self.plan, gather, origin, launches)


def to_device(phases: Sequence[HostPhase], device: torch.device) -> list[Phase]:
    """All phases, in one copy that nobody waits for."""
    arrays = [phase.arrays for phase in phases]
    tensors = iter(upload([array for own in arrays for array in own], device))
    return [phase.on([next(tensors) for _ in own]) for phase, own in zip(phases, arrays, strict=True)]
