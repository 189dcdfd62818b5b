"""Words of a tokenized text, for heads that answer word by word."""

from __future__ import annotations

from dataclasses import replace

from server.core import Encoding


def with_words(encoding: Encoding, pad_token_id: int) -> Encoding:
    """The same with `word_starts` of the text's words: the first token of each, and the token behind the last.

    AdapterHub's library takes starts that equal the padding id for padding, so a word that starts there is lost: with
    RoBERTa's padding id of 1 the first one. The parsers were trained that way. Token ids have no words.
    Words that are known are left as they are.
    """
    if encoding.word_starts:
        return encoding
    positions = [i for i, segment in enumerate(encoding.segments) if segment == 0]
    starts: list[int] = []
    last: int | None = None
    for position in positions:
        word = encoding.word_ids[position]
        if word is None or word != last:
            starts.append(position)
        last = word
    ends = [positions[-1] + 1] if positions else []
    kept = tuple(start for start in [*starts, *ends] if start != pad_token_id)
    return replace(encoding, word_starts=kept)
