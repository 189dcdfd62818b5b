"""Where each model family takes adapters, and how they are stitched in.

The base stays an unmodified `transformers` model: a site keeps its module, its parameters and their names, and only
the module's `forward` is replaced on the instance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from server.model.kernels import Kernels
from server.model.packing import PackedBatch
from server.model.routing import RoutingPlan
from server.primitives import SiteKind


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table of families; paths are relative to a layer.

    layers             path of the list of layers
    self_attention     module that calls the attention function
    sites              module that ends in dense, dropout, LayerNorm(x + residual)
    position_offset    first position id, given the base's configuration
    """

    layers: str
    self_attention: str
    sites: dict[SiteKind, str]
    position_offset: Callable[[Any], int]


_BERT_SITES = {SiteKind.ATTENTION: "attention.output", SiteKind.OUTPUT: "output"}


def _from_zero(config: Any) -> int:
    return 0


def _after_padding(config: Any) -> int:
    return int(config.pad_token_id) + 1


_BERT = Family("encoder.layer", "attention.self", _BERT_SITES, _from_zero)
_ROBERTA = Family("encoder.layer", "attention.self", _BERT_SITES, _after_padding)

FAMILIES: dict[str, Family] = {"bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA}


class Stitching:
    """Holds the plan of the pass under way; every stitched module reads it here.

    Not thread-safe on purpose: one model, one pass at a time.

    plan     which adapter each sample takes; None leaves the base as it is
    packed   set when the tokens are one packed row; None means ordinary padded batches (training)
    """

    def __init__(self, model: nn.Module, family: Family, kernels: Kernels) -> None:
        self._kernels = kernels
        self.plan: RoutingPlan | None = None
        self.packed: PackedBatch | None = None
        layers = model.get_submodule(family.layers)
        assert isinstance(layers, nn.ModuleList)
        for index, layer in enumerate(layers):
            # Not a submodule, so that neither state_dict nor .to() sees it.
            object.__setattr__(layer.get_submodule(family.self_attention), "adapterd_stitching", self)
            for kind, path in family.sites.items():
                module = layer.get_submodule(path)
                object.__setattr__(module, "forward", self._site(module, index, kind))

    def _site(self, module: Any, layer: int, kind: SiteKind) -> Callable[[Tensor, Tensor], Tensor]:
        def forward(hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
            projected = module.dropout(module.dense(hidden_states))
            size = projected.shape
            flat = projected.view(-1, size[-1])
            residual = input_tensor.reshape(-1, size[-1])
            plan = self.plan.at(layer, kind) if self.plan else ()
            return self._kernels.site(flat, residual, module.LayerNorm, plan).view(size)

        return forward
