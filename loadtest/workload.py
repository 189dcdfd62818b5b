"""Texts as token ids: how many, how long, in which batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

from server.core import Encoding, TokenInput

MEDIAN_LENGTH = 32
SIGMA = 0.7  # of the logarithm; a tenth of the texts is longer than 78 tokens
MAX_LENGTH = 256
MIN_LENGTH = 4


def encodings(num_tokens: int, vocab_size: int, seed: int) -> list[Encoding]:
    """Random texts of log-normal length, at least `num_tokens` tokens together."""
    rng = random.Random(seed)
    texts: list[Encoding] = []
    total = 0
    while total < num_tokens:
        length = round(rng.lognormvariate(math.log(MEDIAN_LENGTH), SIGMA))
        length = min(max(length, MIN_LENGTH), MAX_LENGTH)
        ids = tuple(rng.choices(range(1000 % vocab_size, vocab_size), k=length))
        texts.append(Encoding(ids, (0,) * length, TokenInput(ids)))
        total += length
    return texts


def batches(
    texts: Sequence[Encoding], budget: int, cost: Callable[[Sequence[Encoding]], int]
) -> Iterator[list[Encoding]]:
    """Texts in order, in batches whose `cost` stays within the budget."""
    batch: list[Encoding] = []
    for text in texts:
        if batch and cost([*batch, text]) > budget:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def packed_cost(batch: Sequence[Encoding]) -> int:
    return sum(text.num_tokens for text in batch)


def padded_cost(batch: Sequence[Encoding]) -> int:
    return len(batch) * max(text.num_tokens for text in batch)
