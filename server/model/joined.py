"""Query, key and value in one product: a layer that projects its input three times reads it once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from server.model.dense import product


class Joined:
    """Linears that read one input. Each keeps its parameters' names and values; these become views of one matrix.

    Outputs that were computed together with the first wait here until their own module is called.

    product   the outputs of all modules side by side, [..., out of all], of x [..., in]; see `dense.product`
    """

    def __init__(self, modules: Sequence[nn.Linear], quantization: str) -> None:
        self._modules = modules
        self._weight, weights = _joined([module.weight for module in modules])
        for module, weight in zip(modules, weights, strict=True):
            module.weight = weight
        bias: Tensor | None = None
        if modules[0].bias is not None:
            bias, biases = _joined([module.bias for module in modules])
            for module, part in zip(modules, biases, strict=True):
                module.bias = part
        self._parameters = weights
        self.product = product(self._weight, bias, quantization)
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    @property
    def is_intact(self) -> bool:
        """Whether the modules still hold the views, as they do until somebody moves or trains the base."""
        if self._modules[0].weight.data_ptr() != self._weight.data_ptr():
            return False
        pairs = zip(self._modules, self._parameters, strict=True)
        return all(module.weight is own and not own.requires_grad for module, own in pairs)

    def keep(self, x: Tensor, y: Tensor) -> Tensor:
        """The first module's part of y [..., out of all]; the others' parts wait for calls with the same x."""
        first, *others = torch.split(y, self._modules[0].out_features, dim=-1)
        self._input, self._waiting = x, dict(enumerate(others, 1))
        return first

    def take(self, number: int, x: Tensor) -> Tensor | None:
        """What waits for module `number` if it was computed from this very x. It is given out once."""
        if self._input is not x:
            return None
        part = self._waiting.pop(number, None)
        if not self._waiting:
            self._input = None
        return part


def join(modules: Sequence[nn.Module], quantization: str = "none") -> Joined | None:
    """The modules joined, None where they are not plain Linears of one shape."""
    linears = [module for module in modules if type(module) is nn.Linear]
    shapes = {(module.weight.shape, module.weight.dtype, module.bias is None) for module in linears}
    return Joined(linears, quantization) if len(linears) == len(modules) > 1 and len(shapes) == 1 else None


def _joined(parameters: Sequence[Tensor]) -> tuple[Tensor, list[nn.Parameter]]:
    """One tensor of all rows, and each parameter as a view of its own rows."""
    whole = torch.cat([parameter.detach() for parameter in parameters])
    parts = torch.split(whole, [len(parameter) for parameter in parameters])
    views = [nn.Parameter(part, own.requires_grad) for part, own in zip(parts, parameters, strict=True)]
    return whole, views
