"""Files of labelled texts -> examples, and what is said of those that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from server.errors import InvalidInput
from training.data import Example
from training.files import read_examples


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_tsv(tmp_path: Path) -> None:
    rows = written(tmp_path / "a.csv", 'text,text_pair,label\n"a, b",c,yes\nd,,no\n')
    assert read_examples(rows, has_tags=False) == [Example("a, b", "yes", "c"), Example("d", "no")]
    rows = written(tmp_path / "a.tsv", "\ufefftext\tlabel\na, b\t1\n")
    assert read_examples(rows, has_tags=False) == [Example("a, b", "1")]


def test_several_labels(tmp_path: Path) -> None:
    rows = written(tmp_path / "a.csv", "text,label\na,x;y\nb,\n")
    assert read_examples(rows, has_tags=False, is_multi=True) == [Example("a", ("x", "y")), Example("b", ())]
    rows = written(tmp_path / "a.jsonl", '{"text": "a", "label": ["x", "y"]}\n')
    assert read_examples(rows, has_tags=False, is_multi=True) == [Example("a", ("x", "y"))]


def test_tags(tmp_path: Path) -> None:
    expected = [Example("play jazz", ("O", "B-genre")), Example("stop", ("O",))]
    rows = written(tmp_path / "a.conll", "-DOCSTART- O\n\nplay VB O\njazz NN B-genre\n\n\nstop VB O\n")
    assert read_examples(rows, has_tags=True) == expected
    lines = '{"tokens": ["play", "jazz"], "tags": ["O", "B-genre"]}\n\n{"tokens": "stop", "tags": "O"}\n'
    assert read_examples(written(tmp_path / "a.jsonl", lines), has_tags=True) == expected


def test_folders_of_the_datasets_library(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    own = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    own.save_to_disk(tmp_path / "classes")
    assert read_examples(tmp_path / "classes", has_tags=False) == [Example("a", "yes"), Example("b", "no")]
    features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=["O", "B-x"]))})
    own = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[0, 1]]}, features=features)
    DatasetDict({"train": own}).save_to_disk(tmp_path / "tags")
    assert read_examples(tmp_path / "tags" / "train", has_tags=True) == [Example("a b", ("O", "B-x"))]
    with pytest.raises(InvalidInput, match="several splits"):
        read_examples(tmp_path / "tags", has_tags=True)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "txt,label\na,b\n", r"row 1: no column 'text'; it has txt, label"),
        ("a.csv", "text,label\na,\n", "row 1: label is empty"),
        ("a.csv", "text,label\na,b\n ,c\n", "row 2: text is ' '"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", "{", "line 1"),
        ("a.jsonl", "[1]\n", "expected an object"),
        ("a.parquet", "", "files end in .csv"),
        ("a.jsonl", '{"text": null, "label": "a"}', "row 1: text is None"),
    ],
)
def test_what_is_wrong_is_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_examples(written(tmp_path / name, text), has_tags=False)


def test_what_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\nschön,gut\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"a\.csv cannot be read.*save it as UTF-8"):
        read_examples(tmp_path / "a.csv", has_tags=False)


def test_a_token_without_a_tag_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="line 2: 'jazz' has no tag"):
        read_examples(written(tmp_path / "a.conll", "play O\njazz\n"), has_tags=True)


def test_a_line_of_json_may_hold_any_character(tmp_path: Path) -> None:
    rows = written(tmp_path / "a.jsonl", '{"text": "a\u2028b", "label": "x"}\n')
    assert read_examples(rows, has_tags=False) == [Example("a\u2028b", "x")]


def test_tags_and_tokens_are_as_many(tmp_path: Path) -> None:
    rows = written(tmp_path / "a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n')
    with pytest.raises(InvalidInput, match="2 tokens and 1 tags"):
        read_examples(rows, has_tags=True)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.csv does not exist"):
        read_examples(tmp_path / "nowhere.csv", has_tags=False)
