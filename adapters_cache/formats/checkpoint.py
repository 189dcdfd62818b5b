"""What every checkpoint format is read into: canonical configuration and tensors, no trace of names or versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NO_METHOD = "none"  # a head alone
BOTTLENECK = "bottleneck"
UNION, FUSION = "union", "fusion"


@dataclass(frozen=True, slots=True, eq=False)
class HeadCheckpoint:
    """A prediction head.

    config   canonical: head_type, the fields of that type with every default filled in, labels (tuple)
    tensors  `heads.<index>.weight` and `.bias`, index counting every module of the head
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An adapter, or a fusion, as it was published.

    config            canonical configuration with every default filled in; None for a head alone. `architecture` names
                      the method, bottlenecks have none; a union has its members in `configs`, a fusion in `members`
    tensors           by canonical key, without model prefix and adapter name:
                      `encoder.layer.0.output.adapters.adapter_down.0.weight`
    base_fingerprint  of the base it was made for; empty where the checkpoint does not tell
    other_heads       besides `head`, which answers by default
    """

    name: str
    model_type: str
    hidden_size: int
    config: Mapping[str, Any] | None
    tensors: Mapping[str, Tensor]
    head: HeadCheckpoint | None = None
    base_fingerprint: str = ""
    other_heads: tuple[HeadCheckpoint, ...] = ()

    @property
    def heads(self) -> tuple[HeadCheckpoint, ...]:
        return (self.head, *self.other_heads) if self.head else self.other_heads

    @property
    def members(self) -> tuple[Mapping[str, Any], ...]:
        return () if self.config is None else members_of(self.config)

    @property
    def method(self) -> str:
        """A short name, for tables."""
        return NO_METHOD if self.config is None else _method(self.config)


def members_of(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The configurations of the methods that work side by side: one, of a union several, of a fusion none."""
    architecture = config.get("architecture")
    if architecture == UNION:
        return tuple(config["configs"])
    return () if architecture == FUSION else (config,)


def _method(config: Mapping[str, Any]) -> str:
    if "peft_type" in config:
        return f"peft_{str(config['peft_type']).lower()}"
    architecture: str | None = config.get("architecture")
    if architecture is None:
        return "compacter" if config["phm_layer"] else BOTTLENECK
    if architecture != "lora":
        return architecture
    if config["composition_mode"] == "scale":
        return "ia3"
    is_vera = config["vera_d"] is not None or config["vera_b"] is not None
    return ("dvora" if is_vera else "dora") if config["use_dora"] else ("vera" if is_vera else "lora")
