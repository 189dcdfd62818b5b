"""Real text of a known number of tokens: the base's own words, each of them one token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return tokenizer


def make_texts(tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int], seed: int) -> list[str]:
    """One text of each length in tokens, special tokens included.

    Raises ValueError where the vocabulary makes no such text.
    """
    rng = random.Random(seed)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii() and word.islower())
    num_special = len(tokenizer("")["input_ids"])
    texts = [" ".join(rng.choices(words, k=max(1, length - num_special))) for length in lengths]
    for text, length in zip(texts, lengths, strict=True):
        found = len(tokenizer(text)["input_ids"])
        if found != max(length, num_special + 1):
            raise ValueError(
                f"a text of {length} tokens came out with {found}: words of this vocabulary are not tokens"
            )
    return texts
