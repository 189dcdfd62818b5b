"""The batched adapter operations, one backend per file behind the same functions.

`reference` is plain PyTorch on any device and defines the semantics; every other backend is tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from server.errors import InvalidInput
from server.model.launches import Prepared
from server.model.routing import DeltaGroup, RoutingPlan, SitePlan, Span
from server.model.weights import CouplingWeights, EditsWeights


class Kernels(Protocol):
    """What a backend offers; `reference` says what each means.

    JOINS   whether query, key and value are computed in one product: a launch less on GPUs, but on CPUs attention is
            slower on its parts, which lie side by side
    """

    JOINS: bool

    def prepare(self, plan: RoutingPlan, num_rows: int, num_layers: int, dtype: torch.dtype) -> Prepared | None: ...
    def site(
        self, hidden: Tensor, residual: Tensor, norm: nn.Module, plan: SitePlan, closes: bool = True
    ) -> Tensor: ...
    def projection(self, y: Tensor, x: Tensor, groups: Sequence[DeltaGroup]) -> Tensor: ...
    def projections(self, y: Tensor, x: Tensor, parts: Sequence[Sequence[DeltaGroup]]) -> Tensor: ...
    def edit(self, hidden: Tensor, samples: Sequence[Span], weights: EditsWeights) -> Tensor: ...
    def couple(self, x: Tensor, weights: CouplingWeights) -> Tensor: ...
    def uncouple(self, y: Tensor, weights: CouplingWeights) -> Tensor: ...


AUTO = "auto"
BACKENDS = ("reference", "eager", "triton")


def backend(name: str, device: torch.device | None = None) -> Kernels:
    """The operations of one backend, for tensors on `device`; None: wherever it can run.

    "auto" is triton on a GPU where it is installed, else eager.

    raises InvalidInput for a name that is not known, or a backend that cannot run here
    """
    if name == AUTO:
        name = "triton" if device is not None and device.type == "cuda" and find_spec("triton") else "eager"
    if name not in BACKENDS:
        raise InvalidInput(f"backend {name!r} is not known; there are {', '.join((AUTO, *BACKENDS))}")
    try:
        module = import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise InvalidInput(f"backend {name!r} needs the package {error.name}, which is not installed here") from error
    if name == "triton":
        module.require(device)
    return cast(Kernels, module)
