"""What every checkpoint format is read into: canonical configuration and tensors, no trace of names or versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NO_METHOD = "none"  # a head alone
BOTTLENECK = "bottleneck"


@dataclass(frozen=True, slots=True, eq=False)
class HeadCheckpoint:
    """A prediction head.

    config   head_type, num_labels, layers, activation_function (None: identity), use_pooler, bias, labels (tuple)
    tensors  `heads.<index>.weight` and `.bias`, index counting every module of the head
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An adapter as it was published.

    config            canonical configuration with every default filled in; None for a head alone
    tensors           by canonical key, without model prefix and adapter name:
                      `encoder.layer.0.output.adapters.adapter_down.0.weight`
    base_fingerprint  of the base it was made for; empty where the checkpoint does not tell
    """

    name: str
    model_type: str
    hidden_size: int
    config: Mapping[str, Any] | None
    tensors: Mapping[str, Tensor]
    head: HeadCheckpoint | None = None
    base_fingerprint: str = ""

    @property
    def method(self) -> str:
        return NO_METHOD if self.config is None else BOTTLENECK
