"""A base too small to be the limit of anything, with adapters and texts for it."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from adapters_cache.formats.adapterhub import write_checkpoint
from loadtest.bench import random_checkpoint
from server.config import ModelConfig
from server.model.base import load_base

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"word{number}" for number in range(1000))


def make_base(folder: Path) -> Path:
    """One BERT layer of 32 units, random weights, and a tokenizer that knows `WORDS`."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertModel(shape).save_pretrained(folder)
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def make_adapters(base_folder: Path, folder: Path, number: int) -> tuple[str, ...]:
    """Names of `number` bottleneck adapters in `folder`, each with a two-class head."""
    base = load_base(ModelConfig(base=str(base_folder), device="cpu"))
    checkpoints = [random_checkpoint(base, seed) for seed in range(number)]
    for checkpoint in checkpoints:
        write_checkpoint(folder / checkpoint.name, checkpoint, base.info)
    return tuple(checkpoint.name for checkpoint in checkpoints)


def make_text(num_words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))
