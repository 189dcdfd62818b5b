"""Tags of words -> tags of tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes import make_base
from make_tokenizer import save_tokenizer

from server.core import Encoding, Parameters, TextInput
from server.errors import InvalidInput
from server.tokenizer import Tokenizer
from training.data import Example
from training.tasks import TASKS, token_tags


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


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("text-classification", "new"),
        ("multi-label-classification", ("x", "new")),
        ("token-classification", ("B-x", "new", "O")),
    ],
)
def test_a_label_that_training_has_not_is_refused(task: str, label: str | tuple[str, ...], tmp_path: Path) -> None:
    example = Example("ab c de", label)
    with pytest.raises(InvalidInput, match="label 'new' does not occur in the training file, which has O, B-x, x;"):
        TASKS[task].target(example, encode(example.text, tmp_path), {"O": 0, "B-x": 1, "x": 2})


def test_what_follows_in_a_word_carries_no_label_where_training_has_none_for_it(tmp_path: Path) -> None:
    example = Example("a.b c,d", ("B-x", "O"))
    target = TASKS["token-classification"].target(example, encode(example.text, tmp_path), {"O": 0, "B-x": 1})
    assert target.tolist() == [-100, 1, -100, -100, 0, 0, 0, -100]
