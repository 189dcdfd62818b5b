"""What an adapter is: its digest and the facts that describe it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters_cache.formats.checkpoint import Checkpoint
from server.core import BaseInfo, Manifest


def make_manifest(checkpoint: Checkpoint, base: BaseInfo) -> Manifest:
    """Describe a checkpoint as served on `base`. Hashes every tensor: not on the event loop."""
    tensors = [*checkpoint.tensors.values()]
    for head in checkpoint.heads:
        tensors += head.tensors.values()
    return Manifest(
        name=checkpoint.name,
        digest=digest_of(checkpoint, base.fingerprint),
        method=checkpoint.method,
        model_type=base.model_type,  # PEFT's checkpoints do not tell
        hidden_size=base.hidden_size,
        num_parameters=sum(tensor.numel() for tensor in tensors),
    )


def digest_of(checkpoint: Checkpoint, base_fingerprint: str) -> str:
    """Give the sha256, hex, of everything that answers depend on.

    Names are not part of it, but for those of further heads, nor is the file format; the dtype of the tensors is.
    """
    head = checkpoint.head
    description: dict[str, Any] = {
        "model_type": checkpoint.model_type,
        "hidden_size": checkpoint.hidden_size,
        "config": checkpoint.config,
        "head": head.config if head else None,
        "base": base_fingerprint,
    }
    # keys of the groups cannot meet: every head's key starts with "heads.", a further head's with a colon
    tensors = {**checkpoint.tensors, **(head.tensors if head else {})}
    for other in checkpoint.other_heads:
        description.setdefault("other_heads", []).append([other.name, other.config])
        tensors |= {f":{other.name}:{key}": tensor for key, tensor in other.tensors.items()}
    digest = hashlib.sha256(_json(description))
    for key, tensor in sorted(tensors.items(), key=lambda item: item[0]):
        digest.update(_json([key, str(tensor.dtype), list(tensor.shape)]))
        digest.update(_data(tensor))
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    """A length and a canonical text, so that no two different sequences hash the same bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode()
    return len(text).to_bytes(8, "little") + text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


def _data(tensor: Tensor) -> memoryview:
    """The raw bytes, row-major."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
