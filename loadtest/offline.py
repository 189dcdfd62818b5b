"""The same engine without wire, queue and tokenizer: what serving is held against. Runs in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from loadtest.bench import batch_of, run_all
from server.config import ModelConfig
from server.core import Adapter, Batch, Encoding, Target, TokenInput, target_of
from server.metrics import Metrics
from server.model.base import load_base
from server.model.runner import Runner
from server.model.slots import SlotBank


@dataclass(frozen=True, slots=True)
class Offline:
    """What to run.

    adapters     folders, dealt out to the texts in turn
    token_ids    of the texts, special tokens included
    """

    model: ModelConfig
    adapters: tuple[Path, ...]
    token_ids: tuple[tuple[int, ...], ...]


def ready() -> None:
    """Does nothing: a process that has run it has everything imported."""


def measure(offline: Offline, max_batch_tokens: int, seconds: float) -> float:
    """Tokens a second of whole batches within the budget. The first call of a process loads and warms up."""
    engine = _engine(offline)
    return engine.tokens_per_s(max_batch_tokens, seconds)


def digests(offline: Offline) -> tuple[str, ...]:
    """Of the adapters, in their order: what the server's answers must carry too."""
    return tuple(adapter.digest for adapter in _engine(offline).adapters)


@cache
def _engine(offline: Offline) -> _Engine:
    return _Engine(offline)


class _Engine:
    def __init__(self, offline: Offline) -> None:
        base = load_base(offline.model)
        bank = SlotBank(base.device, base.dtype)
        self._runner = Runner(base, bank, Metrics())
        self.adapters: list[Adapter] = [
            build_adapter(read_checkpoint(folder), base.info, base.dtype, base) for folder in offline.adapters
        ]
        self._slots = {adapter.digest: slot for slot, adapter in enumerate(self.adapters, start=1)}
        for adapter in self.adapters:
            bank.write(self._slots[adapter.digest], adapter)
        self._texts = [Encoding(ids, (0,) * len(ids), TokenInput(ids)) for ids in offline.token_ids]

    def tokens_per_s(self, max_batch_tokens: int, seconds: float) -> float:
        batches = self._batches(max_batch_tokens)
        run_all(self._runner, batches[:1])
        num_tokens, started = 0, time.perf_counter()

        def until_time_is_up() -> Iterator[Batch]:
            nonlocal num_tokens
            for batch in cycle(batches):
                if num_tokens and time.perf_counter() - started >= seconds:
                    return
                num_tokens += batch.num_tokens
                yield batch

        run_all(self._runner, until_time_is_up())
        return num_tokens / (time.perf_counter() - started)

    def _batches(self, max_batch_tokens: int) -> Sequence[Batch]:
        """Full ones: texts and adapters go on in turn from one to the next."""
        batches: list[Batch] = []
        place = 0
        for _ in range(2):
            pairs: list[tuple[Encoding, Target]] = []
            num_tokens = 0
            while not pairs or num_tokens + self._texts[place % len(self._texts)].num_tokens <= max_batch_tokens:
                text = self._texts[place % len(self._texts)]
                pairs.append((text, target_of(self.adapters[place % len(self.adapters)])))
                num_tokens += text.num_tokens
                place += 1
            batches.append(batch_of(pairs, self._slots))
        return batches
