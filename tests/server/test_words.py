from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import make_encoding

from server.core import Encoding, TextInput
from server.words import with_words


def encoding_of(segments: tuple[int, ...], word_ids: tuple[int | None, ...]) -> Encoding:
    ids = tuple(range(len(segments)))
    return Encoding(ids, ids, TextInput("x"), segments=segments, word_ids=word_ids)


@pytest.mark.parametrize(
    ("segments", "word_ids", "pad_token_id", "starts"),
    [
        ((-1, 0, 0, 0, -1), (None, 0, 0, 1, None), 0, (1, 3, 4)),
        ((-1, 0, 0, 0, -1), (None, 0, 0, 1, None), 1, (3, 4)),  # the library drops what equals the padding id
        ((-1, 0, 0, -1, 1, 1, -1), (None, 0, 1, None, 0, 1, None), 0, (1, 2, 3)),  # the text only, not the pair
        ((-1, -1), (None, None), 0, ()),
    ],
)
def test_words_start_where_their_first_token_is(
    segments: tuple[int, ...], word_ids: tuple[int | None, ...], pad_token_id: int, starts: tuple[int, ...]
) -> None:
    assert with_words(encoding_of(segments, word_ids), pad_token_id).word_starts == starts


def test_token_ids_have_no_words() -> None:
    assert with_words(make_encoding(5), 0).word_starts == ()


def test_known_words_stay() -> None:
    known = replace(make_encoding(5), word_starts=(1, 3))
    assert with_words(known, 0) is known
