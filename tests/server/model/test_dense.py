"""The base's own products: the same as its modules', packed where that is faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from server.errors import InvalidInput
from server.model.dense import check_quantization, product


@pytest.mark.parametrize("rows", (1, 2, 7, 33, 1500))
@pytest.mark.parametrize("has_bias", (True, False))
def test_packed_product_equals_the_module(rows: int, has_bias: bool) -> None:
    torch.manual_seed(rows)
    module = nn.Linear(96, 40, bias=has_bias).requires_grad_(False)
    x = torch.randn(1, rows, 96)
    with torch.inference_mode():
        assert torch.allclose(product(module.weight, module.bias)(x), module(x), atol=1e-5)


def test_rows_do_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 48).requires_grad_(False)
    multiply = product(module.weight, module.bias)
    x = torch.randn(300, 64)
    with torch.inference_mode():
        together = multiply(x)
        alone = torch.cat([multiply(x[i : i + 1]) for i in range(0, 300, 37)])
    assert torch.allclose(together[::37], alone, atol=1e-5)


def test_gradients_flow_through_to_the_input() -> None:
    module = nn.Linear(8, 4).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    product(module.weight, module.bias)(x).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, module.weight.sum(0).expand(3, 8))


def test_half_precision_takes_the_module_s_own_weight() -> None:
    module = nn.Linear(8, 4, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(product(module.weight, module.bias)(x), module(x))


@pytest.mark.parametrize("has_bias", (True, False))
def test_int8_stays_near_the_exact_product(has_bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(768, 96, bias=has_bias).requires_grad_(False)
    x = torch.randn(2, 17, 768) * torch.logspace(-2, 2, 17)[:, None]  # each token has a scale of its own
    with torch.inference_mode():
        exact, found = module(x), product(module.weight, module.bias, "int8")(x)
    off = (found - exact).norm(dim=-1) / (exact - (module.bias if has_bias else 0)).norm(dim=-1)
    assert found.shape == exact.shape and 0 < off.max() < 0.04


def test_int8_tokens_do_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 48).requires_grad_(False)
    multiply = product(module.weight, module.bias, "int8")
    x = torch.randn(300, 64)
    x[7] = 0
    x[8] *= 1e6
    with torch.inference_mode():
        together = multiply(x)
        assert torch.equal(together[5:10], torch.cat([multiply(x[i : i + 1]) for i in range(5, 10)]))
        for num_rows in (15, 16, 17, 31, 32, 33, 64, 299):  # kernels differ by it
            assert torch.equal(together[:num_rows], multiply(x[:num_rows]))
        assert torch.equal(together[7], module.bias)


def test_int8_elsewhere_is_refused() -> None:
    with pytest.raises(InvalidInput, match="needs a CPU and float32, not cpu and bfloat16"):
        check_quantization("int8", torch.device("cpu"), torch.bfloat16)
    check_quantization("none", torch.device("cpu"), torch.bfloat16)
