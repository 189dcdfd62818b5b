"""The base's own Linears in the layout that this machine multiplies fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

PACKED_FOR = 1024  # rows that the layout is chosen for; it is within 10 % of the best one from 8 rows on

Product = Callable[[Tensor], Tensor]


def product(module: nn.Linear) -> Product:
    """x -> x @ weight.T + bias, as `module` computes it, up to rounding.

    On a CPU in float32 the weight is kept a second time, in oneDNN's blocked layout: it is reordered once instead of at
    every call, and the bias is added inside the product. What needs gradients takes the module's own weight.
    """
    if not _can_pack(module):
        return lambda x: linear(x, module.weight, module.bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), PACKED_FOR)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def call(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return linear(x, module.weight, module.bias)
        return multiply(x, packed, module.bias, "none", [], "")  # type: ignore[no-any-return]

    return call


def _can_pack(module: nn.Linear) -> bool:
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and torch._C._has_mkldnn
