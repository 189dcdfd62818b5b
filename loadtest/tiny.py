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
from adapters_cache.formats.configs import canonical_config
from server.config import ModelConfig
from server.model.base import load_base
from training.parameters import new_checkpoint, new_head

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"word{number}" for number in range(1000))
METHOD = "seq_bn[reduction_factor=4]"


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
    config = canonical_config({"config": METHOD, "version": ""}, has_invertible=False)
    names = tuple(f"a{seed}" for seed in range(number))
    for seed, name in enumerate(names):
        head = new_head(name, base.info, "classification", ("no", "yes"), seed)
        write_checkpoint(folder / name, new_checkpoint(name, base.info, config, head, seed), base.info)
    return names


def make_text(num_words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))
