"""The batched adapter operations, one backend per file behind the same functions.

`reference` is plain PyTorch on any device and defines the semantics; every other backend is tested against it.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from server.errors import InvalidInput
from server.model.kernels import eager, reference
from server.model.routing import SitePlan


class Kernels(Protocol):
    """What a backend offers."""

    def site(self, hidden: Tensor, residual: Tensor, norm: nn.Module, plan: SitePlan) -> Tensor: ...


BACKENDS = {"reference": reference, "eager": eager}


def backend(name: str) -> Kernels:
    """Raises InvalidInput for a name that is not known."""
    if name not in BACKENDS:
        raise InvalidInput(f"backend {name!r} is not known; there are {', '.join(BACKENDS)}")
    return cast(Kernels, BACKENDS[name])
