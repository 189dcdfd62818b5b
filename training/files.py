"""Read labelled texts from CSV, TSV, JSON lines, CoNLL columns, or a folder that the `datasets` library saved."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from server.errors import InvalidInput
from training.data import Example

Row = Mapping[str, Any]
LIST_SEPARATOR = ";"  # between the labels of one CSV cell


def read_examples(path: Path, *, has_tags: bool, is_multi: bool = False) -> list[Example]:
    """Every labelled text of a file or folder, in order.

    has_tags  columns `tokens` and `tags`, a tag per token; otherwise `text`, `text_pair` (optional) and `label`
    is_multi  `label` is a list of names (in CSV separated by ";")
    Raises InvalidInput naming the file, the row and what is missing.
    """
    if not path.exists():
        raise InvalidInput(f"{path} does not exist; name a .csv, .tsv, .jsonl or .conll file, or a datasets folder")
    read = _read_folder if path.is_dir() else READERS.get(path.suffix.lower())
    if read is None:
        raise InvalidInput(f"{path}: files end in {', '.join(READERS)}, this one in {path.suffix!r}")
    make = _tagged if has_tags else (_multi if is_multi else _single)
    try:
        examples = [_made(make, row, f"{path}, row {number}") for number, row in enumerate(read(path), 1)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{path} cannot be read: {error}; save it as UTF-8") from error
    if not examples:
        raise InvalidInput(f"{path} holds no rows")
    return examples


def _made(make: Callable[[Row], Example], row: Row, where: str) -> Example:
    try:
        return make(row)
    except KeyError as error:
        raise InvalidInput(f"{where}: no column {error}; it has {', '.join(map(str, row)) or 'none'}") from error
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{where}: {error}") from error


def _single(row: Row) -> Example:
    label = row["label"]
    if label is None or str(label) == "":
        raise ValueError("label is empty")
    return Example(_text(row, "text"), str(label), _pair(row))


def _multi(row: Row) -> Example:
    labels = row["label"]
    names = labels.split(LIST_SEPARATOR) if isinstance(labels, str) else labels or ()
    return Example(_text(row, "text"), tuple(str(name).strip() for name in names if str(name).strip()), _pair(row))


def _tagged(row: Row) -> Example:
    tokens, tags = (_words(row[key]) for key in ("tokens", "tags"))
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags; give one tag per token")
    if not tokens or any(len(token.split()) != 1 for token in tokens):
        raise ValueError("tokens have to be words without blanks, at least one")
    return Example(" ".join(tokens), tuple(tags))


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(word) for word in value]


def _text(row: Row, column: str) -> str:
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{column} is {text!r}, expected some text")
    return text


def _pair(row: Row) -> str | None:
    return _text(row, "text_pair") if row.get("text_pair") else None


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")


def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise InvalidInput(f"{path}, line {number}: expected an object, found {line[:40]!r}")
        yield row


def _read_conll(path: Path) -> Iterator[Row]:
    """A token per line, its tag in the last column, a blank line between sentences."""
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*path.read_text(encoding="utf-8-sig").split("\n"), ""], 1):
        columns = line.split()
        if len(columns) == 1 and columns[0] != "-DOCSTART-":
            raise InvalidInput(f"{path}, line {number}: {line.strip()[:40]!r} has no tag; give a token and its tag")
        if columns and columns[0] != "-DOCSTART-":
            tokens.append(columns[0])
            tags.append(columns[-1])
        elif tokens:
            yield {"tokens": tokens, "tags": tags}
            tokens, tags = [], []


def _read_folder(path: Path) -> Iterator[Row]:
    try:
        from datasets import ClassLabel, load_from_disk  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise InvalidInput(
            f"{path} is a folder: reading it needs the datasets library: pip install datasets"
        ) from error
    found = load_from_disk(str(path))
    if isinstance(found, dict):
        raise InvalidInput(f"{path} holds several splits ({', '.join(found)}); name one: {path / next(iter(found))}")
    names = {}
    for column, feature in found.features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, ClassLabel):
            names[column] = inner.int2str
    for row in found:
        yield {column: _named(value, names.get(column)) for column, value in row.items()}


def _named(value: Any, int2str: Callable[[Any], Any] | None) -> Any:
    return value if int2str is None or value is None else int2str(value)


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".conll": _read_conll,
    ".bio": _read_conll,
    ".txt": _read_conll,
}
