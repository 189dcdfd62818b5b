"""Parameterised hypercomplex projections (Compacter, arXiv:2106.04647) -> plain weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters_cache.flat import TensorSource
from adapters_cache.formats.fields import refusal


def phm_weight(config: Mapping[str, Any], path: str, num_in: int, num_out: int, source: TensorSource) -> Tensor:
    """Give the weight [out, in] of the projection at `path`: the transposed sum of n Kronecker products.

    Raises MalformedCheckpoint, UnsupportedConfig where the sizes cannot be divided.
    """
    n = config["phm_dim"]
    if num_in % n or num_out % n:
        raise refusal("config.phm_dim", n, f"a divisor of both {num_in} and {num_out}")
    rule = _rule(config, path, n, source)
    factors = _factors(config, path, (num_in // n, num_out // n), source)
    # block (a, b) of a Kronecker product is rule[a, b] * factor: sum over the n products, then lay the blocks out
    blocks = (rule[:, :, None, :, None] * factors[:, None, :, None, :]).sum(0)  # [n, in/n, n, out/n]
    return blocks.reshape(num_in, num_out).t()


def _rule(config: Mapping[str, Any], path: str, n: int, source: TensorSource) -> Tensor:
    """The n matrices [n, n] that the factors are multiplied with."""

    def take(name: str, *shape: int) -> Tensor:
        return source.share(name, *shape) if config["shared_phm_rule"] else source.take(f"{path}.{name}", *shape)

    if config["factorized_phm_rule"]:
        return take("phm_rule_left", n, n, 1) @ take("phm_rule_right", n, 1, n)
    return take("phm_rule", n, n, n)


def _factors(config: Mapping[str, Any], path: str, size: tuple[int, int], source: TensorSource) -> Tensor:
    """The n matrices [in / n, out / n]."""
    n, rank = config["phm_dim"], config["phm_rank"]
    if not config["factorized_phm_W"]:
        if config["shared_W_phm"]:
            raise refusal("config.shared_W_phm", True, "false where factorized_phm_W is false")
        return source.take(f"{path}.W", n, *size)
    left, right = (n, size[0], rank), (n, rank, size[1])
    if config["shared_W_phm"]:
        side = "up" if path.endswith(".adapter_up") else "down"
        return source.share(f"W_{side}_left", *left) @ source.share(f"W_{side}_right", *right)
    return source.take(f"{path}.W_left", *left) @ source.take(f"{path}.W_right", *right)
