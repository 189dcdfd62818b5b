"""The base's own Linears in the form that this machine multiplies fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from server.errors import InvalidInput

PACKED_FOR = 1024  # rows that the layout is chosen for; it is within 10 % of the best one from 8 rows on
# Activations take 7 bits: CPUs without VNNI add pairs of products in 16 bits, which 8 bits overflow.
MOST, MIDDLE = 63, 64
TINY = 1e-12  # a row of zeros stays one

Product = Callable[[Tensor], Tensor]


def product(weight: Tensor, bias: Tensor | None, quantization: str = "none") -> Product:
    """x -> x @ weight.T + bias; x [..., in], weight [out, in], bias [out].

    "none"   up to rounding. On a CPU in float32 the weight is kept a second time, in oneDNN's blocked layout: it is
             reordered once instead of at every call, and the bias is added inside the product
    "int8"   weights in 8 bits with a scale per output, activations in 7 bits with a scale per token, so that no token
             depends on its neighbours; sums are exact. About 2 % off per Linear

    What needs gradients takes `weight` itself.
    """

    def plain(x: Tensor) -> Tensor:
        return linear(x, weight, bias)

    if not can_pack(weight):
        return plain
    fast = _quantized(weight, bias) if quantization == "int8" else _packed(weight, bias)
    return lambda x: plain(x) if torch.is_grad_enabled() else fast(x)


def can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and torch._C._has_mkldnn


def check_quantization(quantization: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InvalidInput where it cannot be had."""
    if quantization == "int8" and not can_pack(torch.empty(0, device=device, dtype=dtype)):
        name = str(dtype).removeprefix("torch.")
        raise InvalidInput(f"quantization 'int8' needs a CPU and float32, not {device} and {name}; leave it at 'none'")


def _packed(weight: Tensor, bias: Tensor | None) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, packed, bias, "none", [], "")


def _quantized(weight: Tensor, bias: Tensor | None) -> Product:
    steps = weight.detach().abs().amax(dim=1).clamp_min(TINY) / 127
    rounded = (weight.detach() / steps[:, None]).round().to(torch.int8)
    scales = steps / MOST
    packed = torch.ops.onednn.qlinear_prepack(rounded, [PACKED_FOR, weight.shape[1]])
    # The product itself is in whole numbers: its kernels, which differ by the number of rows, round scales differently.
    zeros, ones = torch.zeros(len(scales), dtype=torch.int64), torch.ones(len(scales))
    shift = torch.tensor(MIDDLE + 0.5)  # conversion cuts off
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def call(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        largest = torch.linalg.vector_norm(rows, float("inf"), dim=-1, keepdim=True).clamp_min_(TINY)
        q = torch.addcmul(shift, rows, MOST / largest).to(torch.uint8)
        y = multiply(q, 1.0, MIDDLE, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], "").mul_(scales)
        y = y.mul_(largest) if bias is None else torch.addcmul(bias, y, largest)
        return y.view(*x.shape[:-1], -1)

    return call
