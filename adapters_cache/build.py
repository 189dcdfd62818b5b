"""Checkpoint -> the adapter as it lies in host memory."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapters_cache.draft import BaseWeights
from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.lowering import lower
from adapters_cache.manifest import make_manifest
from server.core import Adapter, BaseInfo
from server.errors import MalformedCheckpoint
from server.memory import pages


@torch.no_grad()
def build_adapter(
    checkpoint: Checkpoint,
    base: BaseInfo,
    dtype: torch.dtype,
    weights: BaseWeights | None = None,
    *,
    name: str | None = None,
    pin_memory: bool = False,
) -> Adapter:
    """Lower a checkpoint and cast it to the compute dtype.

    weights     the base's own, which some methods are lowered with
    pin_memory  whether the device copies from page-locked memory
    Heavy: not on the event loop. Raises WrongBase, MalformedCheckpoint, UnsupportedConfig.
    """
    spec, tensors = lower(checkpoint, base, weights)
    values = pages(spec.num_elements, torch.float32)  # of its own: between long-lived blocks it would leave a hole
    torch.cat([torch.empty(0), *(tensor.reshape(-1) for tensor in tensors)], out=values)
    values = _in_pages(values, dtype)
    if not bool(torch.isfinite(values).all()):
        raise MalformedCheckpoint(
            f"weights do not fit into {str(dtype).removeprefix('torch.')}: the largest is"
            f" {max(float(tensor.abs().max()) for tensor in tensors):g}; serve with a dtype of more range"
        )
    values = values.pin_memory() if pin_memory else values
    manifest = make_manifest(checkpoint, base)
    return Adapter(
        manifest=replace(manifest, name=name or manifest.name),
        spec=spec,
        weights=values,
        size_bytes=values.numel() * values.element_size(),
    )


def _in_pages(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values if values.dtype is dtype else pages(len(values), dtype).copy_(values)
