"""Stage 2: turn text into token ids, off the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.core import BaseInfo, Encoding, Input, Parameters, TextInput, TokenInput, Truncation
from server.errors import InvalidInput

# Far above what any language needs; without a limit one text keeps a thread busy for seconds, only to be refused.
MAX_CHARS_PER_TOKEN = 64
BITE_CHARS = 1 << 16  # characters tokenized between two looks at whether the caller is still there


class Tokenizer:
    """The base's own fast tokenizer behind a small pool of threads.

    It is set up once and never changed afterwards: truncation happens on what it returns, so threads share it safely.

    source   directory of the base, or what `serialized` gave of it; None if it has no tokenizer: then only token ids
             are taken
    """

    def __init__(self, source: Path | str | None, base: BaseInfo, num_threads: int) -> None:
        self._base = base
        self._backend = _load(source) if isinstance(source, Path) else _read(source) if source is not None else None
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")

    async def encode(self, inputs: Sequence[Input], parameters: Parameters) -> list[Encoding]:
        """One encoding per input, in order. Raises InvalidInput, which names the input by its index."""
        loop, has_left = asyncio.get_running_loop(), threading.Event()
        try:
            return await loop.run_in_executor(self._pool, self._encode, inputs, parameters.truncation, has_left)
        finally:
            has_left.set()

    @property
    def base(self) -> BaseInfo:
        return self._base

    def text_of(self, token_id: int) -> str:
        """A token as text; empty if there is no tokenizer."""
        return self._backend.decode([token_id], skip_special_tokens=False) if self._backend is not None else ""

    def close(self) -> None:
        """Ends the threads without waiting: whoever is still in one has been told already that it will not answer."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, inputs: Sequence[Input], truncation: Truncation, has_left: threading.Event) -> list[Encoding]:
        """Bite by bite, so that a caller who has left or an input that is refused ends it soon."""
        texts: dict[int, TextInput] = {}
        encodings: dict[int, Encoding] = {}
        for index, source in enumerate(inputs):
            if isinstance(source, TokenInput):
                encodings[index] = check_tokens(index, source, self._base)
            else:
                _check_text(index, source)
                texts[index] = _cut_characters(index, source, self._base.max_tokens * MAX_CHARS_PER_TOKEN, truncation)
        for bite in _bites(texts):
            if has_left.is_set():
                break
            for (index, text), raw in zip(bite.items(), self._tokenize(list(bite.values())), strict=True):
                encoding = self._read(index, text, raw, truncation)
                is_truncated = encoding.is_truncated or text is not inputs[index]
                encodings[index] = replace(encoding, source=inputs[index], is_truncated=is_truncated)
        return [encodings[index] for index in sorted(encodings)]

    def _tokenize(self, texts: list[TextInput]) -> list[Any]:
        """The library's encodings of whole texts, special tokens included. Runs without the GIL."""
        if self._backend is None:
            raise InvalidInput(f"the base {self._base.name} has no tokenizer; send token ids instead of text")
        pairs = [text.text if text.text_pair is None else (text.text, text.text_pair) for text in texts]
        encodings: list[Any] = self._backend.encode_batch(pairs)
        return encodings

    def _read(self, index: int, source: TextInput, raw: Any, truncation: Truncation) -> Encoding:
        segments = [-1 if segment is None else segment for segment in raw.sequence_ids]
        lengths = (segments.count(0), segments.count(1))
        if not lengths[0] or (source.text_pair is not None and not lengths[1]):
            raise InvalidInput(f"input {index} holds no character that the tokenizer knows; send some text")
        kept = (
            lengths
            if len(segments) <= self._base.max_tokens
            else _cut(index, lengths, len(segments), self._base.max_tokens, truncation)
        )
        keep = _kept_positions(segments, kept)
        type_ids = raw.type_ids if self._base.type_vocab_size > 1 else [0] * len(segments)
        ids = _pick(raw.ids, keep)
        _check_range(index, "token id", ids, self._base.vocab_size)  # a tokenizer may have had tokens added
        return Encoding(
            input_ids=ids,
            token_type_ids=_pick(type_ids, keep),
            source=source,
            offsets=_pick(raw.offsets, keep),
            segments=_pick(segments, keep),
            tokens=_pick(raw.tokens, keep),
            word_ids=_pick(raw.word_ids, keep),
            is_truncated=kept != lengths,
        )


def check_tokens(index: int, source: TokenInput, base: BaseInfo) -> Encoding:
    """Input number `index`, which came as token ids. Raises InvalidInput if the base cannot take them."""
    ids, types = source.input_ids, source.token_type_ids or (0,) * len(source.input_ids)
    if not ids:
        raise InvalidInput(f"input {index} has 0 tokens; send at least 1")
    if len(ids) > base.max_tokens:
        raise InvalidInput(f"input {index} has {len(ids)} tokens, the limit is {base.max_tokens}; shorten it")
    if len(types) != len(ids):
        raise InvalidInput(
            f"input {index} has {len(types)} token_type_ids for {len(ids)} input_ids; send as many, or none"
        )
    _check_range(index, "token id", ids, base.vocab_size)
    _check_range(index, "token type id", types, base.type_vocab_size)
    return Encoding(input_ids=ids, token_type_ids=types, source=source)


def serialized(path: Path | None) -> str | None:
    """The tokenizer of a base's directory for a process that does without transformers."""
    if path is None:
        return None
    text: str = _load(path).to_str()
    return text


def _read(text: str) -> Any:
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(text)


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer  # takes seconds, and a base without text needs none of it

    # The pool is the parallelism here: the library's own threads would take the cores that compute.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if not tokenizer.is_fast:
        raise InvalidInput(f"{type(tokenizer).__name__} has no fast form; add a tokenizer.json to the base's directory")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # checkpoints bring their own limits and paddings along
    backend.no_padding()
    return backend


def _check_text(index: int, source: TextInput) -> None:
    if not source.text.strip():
        raise InvalidInput(f"input {index} has an empty text; send at least one character besides white space")
    if source.text_pair is not None and not source.text_pair.strip():
        raise InvalidInput(f"input {index} has an empty text_pair; leave it out if there is none")


def _cut_characters(index: int, source: TextInput, limit: int, truncation: Truncation) -> TextInput:
    """`source` itself if it is short enough, else as much of it as truncation lets go. Raises InvalidInput."""
    first, second = len(source.text), len(source.text_pair or "")
    uncut = {Truncation.REFUSE: max(first, second), Truncation.ONLY_SECOND: first, Truncation.LONGEST_FIRST: 0}
    if uncut[truncation] > limit:
        remedy = "set truncation" if truncation is Truncation.REFUSE else "cut longest first"
        raise InvalidInput(
            f"input {index} has a text of {uncut[truncation]} characters, the limit is {limit}; shorten it or {remedy}"
        )
    if max(first, second) <= limit:
        return source
    return TextInput(source.text[:limit], source.text_pair and source.text_pair[:limit])


def _bites(texts: Mapping[int, TextInput]) -> Iterator[dict[int, TextInput]]:
    bite: dict[int, TextInput] = {}
    num_chars = 0
    for index, text in texts.items():
        bite[index] = text
        num_chars += len(text.text) + len(text.text_pair or "")
        if num_chars >= BITE_CHARS:
            yield bite
            bite, num_chars = {}, 0
    if bite:
        yield bite


def _check_range(index: int, what: str, values: Sequence[int], size: int) -> None:
    for value in (min(values), max(values)):
        if not 0 <= value < size:
            raise InvalidInput(f"input {index} has {what} {value}; it must lie in [0, {size})")


def _cut(index: int, lengths: tuple[int, int], num_tokens: int, limit: int, truncation: Truncation) -> tuple[int, int]:
    """How many tokens of each segment stay, so that an input of `num_tokens` fits into `limit`."""
    fact = f"input {index} has {num_tokens} tokens, the limit is {limit}"
    if truncation is Truncation.REFUSE:
        raise InvalidInput(f"{fact}; shorten it or set truncation")
    first, second = lengths
    room = limit - (num_tokens - first - second)  # without the special tokens
    if truncation is Truncation.LONGEST_FIRST:
        return _longest_first(first, second, room)
    if not second:
        raise InvalidInput(f"{fact}, and there is no second segment to cut; shorten it or cut longest first")
    if first >= room:
        raise InvalidInput(f"{fact}, and its first segment alone has {first}; shorten that or cut longest first")
    return first, room - first


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens taken one by one from the longer segment until `room` are left; an odd one stays with the longer."""
    short, long = sorted((first, second))
    if short * 2 <= room:
        long = room - short
    else:
        short, long = room // 2, room - room // 2
    return (long, short) if first > second else (short, long)


def _kept_positions(segments: list[int], kept: tuple[int, int]) -> list[int]:
    """Positions of the special tokens and of the first `kept` tokens of each segment."""
    left = list(kept)
    positions = []
    for position, segment in enumerate(segments):
        if segment < 0:
            positions.append(position)
        elif left[segment]:
            left[segment] -= 1
            positions.append(position)
    return positions


def _pick(values: Sequence[Any], positions: list[int]) -> tuple[Any, ...]:
    return tuple(values) if len(positions) == len(values) else tuple(values[i] for i in positions)
