"""What to compare, and the command that does it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """One comparison.

    peers         keys of contenders
    num_tokens    of all texts together
    budgets       tokens per batch that each contender may choose from
    memory_bytes  for copies of the base
    timeout_s     for any one command to a worker
    """

    base: str
    peers: tuple[str, ...]
    num_adapters: int
    num_tokens: int
    budgets: tuple[int, ...]
    rounds: int
    threads: int
    device: str
    dtype: str
    memory_bytes: int
    timeout_s: float
    environments: Path

    @property
    def command(self) -> str:
        peers = " ".join(f"--peer {key}" for key in self.peers)
        budgets = " ".join(f"--budget {budget}" for budget in self.budgets)
        return (
            f"python -m loadtest peers --base {self.base} {peers} --adapters {self.num_adapters}"
            f" --tokens {self.num_tokens} {budgets} --rounds {self.rounds} --threads {self.threads}"
            f" --device {self.device} --dtype {self.dtype} --memory-gib {self.memory_bytes / GIB:g}"
        )

    @property
    def workload(self) -> str:
        return f"{self.base}, {self.num_tokens} tokens, {self.num_adapters} adapters"


def all_threads() -> int:
    """As many as torch takes by itself."""
    return torch.get_num_threads()
