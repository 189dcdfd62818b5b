"""Read labelled texts: tab-separated files, and folders of aligned files (SNIPS)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its label: one name, a set of names (multi-label), or one tag per word."""

    text: str
    label: str | tuple[str, ...]
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Splits by name and every label that occurs in training, sorted (tags: "O" first)."""

    name: str
    splits: dict[str, list[Example]]
    labels: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(examples) for split, examples in self.splits.items()}


def read_sst2(folder: Path) -> Dataset:
    """Stanford Sentiment Treebank, two classes (Socher et al. 2013): lines of text, tab, 0 or 1."""
    names = {"0": "negative", "1": "positive"}

    def read(split: str) -> list[Example]:
        lines = (folder / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = (line.rsplit("\t", 1) for line in lines)
        return [Example(text.strip(), names[label.strip()]) for text, label in pairs]

    return Dataset("SST-2", {split: read(split) for split in SPLITS}, ("negative", "positive"))


def read_snips(folder: Path, target: str) -> Dataset:
    """SNIPS voice commands (Coucke et al. 2018, arXiv:1805.10190).

    target   "intent": the command; "slots": a tag per word; "mentions": the set of slot types that occur
    """

    def read(split: str) -> list[Example]:
        texts, tags, intents = (
            (folder / split / name).read_text(encoding="utf-8").splitlines() for name in ("seq.in", "seq.out", "label")
        )
        rows = zip(texts, tags, intents, strict=True)
        return [_snips_example(target, text, tag, intent) for text, tag, intent in rows]

    splits = {split: read(split) for split in SPLITS}
    labels = {name for example in splits["train"] for name in _names(example.label)}
    ordered = tuple(sorted(labels, key=lambda label: (label != "O", label)))
    return Dataset(f"SNIPS {target}", splits, ordered)


def _snips_example(target: str, text: str, tags: str, intent: str) -> Example:
    words = text.split()
    per_word = tuple(tags.split())
    if target == "intent":
        return Example(" ".join(words), intent.strip())
    if target == "slots":
        return Example(" ".join(words), per_word)
    return Example(" ".join(words), tuple(sorted({tag[2:] for tag in per_word if tag != "O"})))


def _names(label: str | tuple[str, ...]) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label
