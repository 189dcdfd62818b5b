"""Texts as token ids: how many, how long, in which batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from server.core import Encoding, TokenInput

MEDIAN_LENGTH = 32
SIGMA = 0.7  # of the logarithm; a tenth of the texts is longer than 78 tokens
MAX_LENGTH = 256
MIN_LENGTH = 4


Draw = Callable[[random.Random], int]

LENGTHS: Mapping[str, Draw] = {
    "log-normal": lambda rng: round(rng.lognormvariate(math.log(MEDIAN_LENGTH), SIGMA)),
    "all 32": lambda rng: 32,
    "all 128": lambda rng: 128,
    "uniform 4-256": lambda rng: rng.randint(4, 256),
}


def encodings(num_tokens: int, vocab_size: int, seed: int, lengths: str = "log-normal") -> list[Encoding]:
    """Random texts, at least `num_tokens` tokens together, of the lengths that LENGTHS has under this name."""
    rng, draw = random.Random(seed), LENGTHS[lengths]
    texts: list[Encoding] = []
    total = 0
    while total < num_tokens:
        texts.append(encoding(min(max(draw(rng), MIN_LENGTH), MAX_LENGTH), vocab_size, rng))
        total += texts[-1].num_tokens
    return texts


def encoding(length: int, vocab_size: int, rng: random.Random) -> Encoding:
    """One random text."""
    ids = tuple(rng.choices(range(1000 % vocab_size, vocab_size), k=length))
    return Encoding(ids, (0,) * length, TokenInput(ids))


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
