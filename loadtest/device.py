"""What the device can do at most: the yardstick for what the engine reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from server.model.base import Base
from server.model.dense import product

SIDE = 2048  # of the square product
COPIED_BYTES = 256 << 20
REPEATS = 5


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Until the device has done it."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def matmul_rate(base: Base) -> float:
    """Floating-point operations per second of the fastest dense product found, in the base's dtype.

    Tried are a square one and the shape of the base's largest Linear, with this engine's product and with PyTorch's.
    """
    best, inner = 0.0, base.info.intermediate_size
    for rows, columns, depth in ((SIDE, SIDE, SIDE), (SIDE, inner, base.info.hidden_size)):
        x = torch.randn(rows, depth, dtype=base.dtype, device=base.device)
        module = nn.Linear(depth, columns, bias=False, dtype=base.dtype, device=base.device).requires_grad_(False)
        ours = product(module.weight, None)
        for work in (lambda: ours(x), lambda: module(x)):  # noqa: B023 (called at once)
            work()
            seconds = min(seconds_of(work, base.device) for _ in range(REPEATS))
            best = max(best, 2 * rows * columns * depth / seconds)
    return best


@torch.inference_mode()
def bandwidth(base: Base) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.ones(COPIED_BYTES // 4, device=base.device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * COPIED_BYTES / min(seconds_of(lambda: target.copy_(source), base.device) for _ in range(REPEATS))


def num_operations(base: Base, lengths: list[int]) -> float:
    """Floating-point operations of the base on texts of these lengths: its Linears and the products of attention."""
    weights = linear_elements(base)
    attention = 4 * base.info.num_layers * base.info.hidden_size * sum(length**2 for length in lengths)
    return 2.0 * weights * sum(lengths) + attention


def linear_elements(base: Base) -> int:
    """Elements of the weights that every token is multiplied with."""
    layers = range(base.info.num_layers)
    return sum(base.projection_weight(layer, name).numel() for layer in layers for name in base.family.projections)


def resident_bytes(device: torch.device) -> int:
    """What this process holds on the device; of a CPU, its resident set."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
