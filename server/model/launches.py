"""A plan whose kernel launches are prepared: one table per batch instead of one per place.

These classes are sequences of the same blocks as the plain plan's, looked up only where somebody asks for them; a
backend that knows them takes the prepared launch instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.model.routing import DeltaGroup, Run, SitePlan, Tree
from server.primitives import Projection, SiteKind


class Launches(Protocol):
    """The launches of one phase of a pass, by place."""

    def site(self, layer: int, kind: SiteKind) -> SitePlan: ...
    def deltas(self, layer: int, projection: Projection) -> Sequence[DeltaGroup]: ...


class Prepared(Protocol):
    """Launches whose tables are not on the device yet.

    arrays    what has to get there
    is_whole  whether the launches leave nothing out
    variant   hashable: launches of equal variants and shapes differ in nothing but what is in the arrays
    """

    @property
    def is_whole(self) -> bool: ...
    @property
    def variant(self) -> object: ...
    def padded(self, num_rows: int, num_segments: int) -> Prepared:
        """For more rows, the base alone behind the last, with arrays whose shapes follow from these numbers."""

    @property
    def arrays(self) -> Sequence[NDArray[np.int64]]: ...
    def on(self, tensors: Sequence[Tensor]) -> Launches: ...


class LaunchedSite(Sequence[Run | Tree]):
    """The blocks of one site.

    launch   what the backend does in one go; `others` are the blocks that it leaves out
    """

    def __init__(self, launch: Any, others: SitePlan, is_empty: bool, blocks: Callable[[], SitePlan]) -> None:
        self.launch, self.others = launch, others
        self._is_empty, self._blocks = is_empty, blocks

    def __bool__(self) -> bool:
        return not self._is_empty

    def __len__(self) -> int:
        return len(self._blocks())

    @overload
    def __getitem__(self, index: int) -> Run | Tree: ...
    @overload
    def __getitem__(self, index: slice) -> SitePlan: ...
    def __getitem__(self, index: int | slice) -> Run | Tree | SitePlan:
        return self._blocks()[index]


class LaunchedDeltas(Sequence[DeltaGroup]):
    """The groups at one projection, none of which scales its input.

    launch   what the backend does in one go with this and its neighbours; `number` is its own place in there
    others   the groups that the launch leaves out
    """

    def __init__(
        self, launch: Any, number: int, others: Sequence[DeltaGroup], groups: Callable[[], Sequence[DeltaGroup]]
    ) -> None:
        self.launch, self.number, self.others = launch, number, others
        self._groups = groups

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._groups())

    @overload
    def __getitem__(self, index: int) -> DeltaGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[DeltaGroup]: ...
    def __getitem__(self, index: int | slice) -> DeltaGroup | Sequence[DeltaGroup]:
        return self._groups()[index]
