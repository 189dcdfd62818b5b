"""Tags of words -> tags of tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fakes import make_base
from make_tokenizer import save_tokenizer

from server.core import Encoding, Parameters, TextInput
from server.tokenizer import Tokenizer
from training.data import Example
from training.tasks import token_tags


def encode(text: str, path: Path) -> Encoding:
    tokenizer = Tokenizer(save_tokenizer(path), make_base(vocab_size=70), num_threads=1)
    try:
        [encoding] = asyncio.run(tokenizer.encode([TextInput(text)], Parameters()))
    finally:
        tokenizer.close()
    return encoding


def test_first_token_of_each_word_carries_its_tag(tmp_path: Path) -> None:
    example = Example("ab c de", ("B-x", "I-x", "O"))
    #                                                [CLS] a    ##b c      d    ##e [SEP]
    assert token_tags(example, encode(example.text, tmp_path)) == ["", "B-x", "", "I-x", "O", "", ""]


def test_word_that_the_tokenizer_splits_goes_on_inside_its_entity(tmp_path: Path) -> None:
    example = Example("a.b c,d", ("B-x", "O"))
    tags = token_tags(example, encode(example.text, tmp_path))
    assert tags == ["", "B-x", "I-x", "I-x", "O", "O", "O", ""]
