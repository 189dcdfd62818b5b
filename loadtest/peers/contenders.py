"""Who is compared, on which workload, and by how much ours has to be faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.peers.material import BASE, BOTTLENECK, LORA

WORKERS = Path(__file__).parent / "workers"
OURS = WORKERS / "adapterd_engine.py"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to answer one workload.

    key          its name on the command line, empty for ours
    mode         what the worker is asked for
    environment  of the foreign library, None where this one serves
    is_batched   has a token budget; others take one text at a time
    targets      ours over its tokens/s, by device type
    """

    key: str
    title: str
    workload: str
    script: Path
    mode: str
    environment: str | None = None
    is_batched: bool = True
    targets: Mapping[str, float] = field(default_factory=dict)


def ours(workload: str) -> Contender:
    return Contender("", f"adapterd, {TITLES[workload]}", workload, OURS, "packed")


TITLES = {BASE: "no adapters", BOTTLENECK: "bottlenecks", LORA: "LoRA"}
PEERS = (
    Contender(
        "transformers",
        "transformers, padded",
        BASE,
        WORKERS / "transformers_padded.py",
        "padded",
        targets={"cpu": 1.8, "cuda": 3.0},
    ),
    Contender(
        "adapterhub-batchsplit",
        "AdapterHub, BatchSplit",
        BOTTLENECK,
        WORKERS / "adapterhub.py",
        "batch_split",
        "adapterhub",
        targets={"cpu": 2.0, "cuda": 15.0},
    ),
    Contender(
        "adapterhub-switch",
        "AdapterHub, switched",
        BOTTLENECK,
        WORKERS / "adapterhub.py",
        "switch",
        "adapterhub",
        is_batched=False,
        targets={"cpu": 1.5, "cuda": 30.0},
    ),
    Contender(
        "peft",
        "PEFT, mixed batch",
        LORA,
        WORKERS / "peft_mixed.py",
        "mixed",
        "peft",
        targets={"cpu": 2.0, "cuda": 10.0},
    ),
    Contender(
        "full",
        "one full model per task",
        LORA,
        WORKERS / "full_models.py",
        "one_by_one",
        is_batched=False,
    ),
)
