"""Entities in tags, and how many were found."""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[str, int, int]


def entity_f1(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> float:
    """Micro-averaged F1 of exact entities in BIO tags, as the CoNLL-2000 evaluation counts them."""
    found = [(i, *entity) for i, tags in enumerate(predicted) for entity in entities(tags)]
    wanted = [(i, *entity) for i, tags in enumerate(gold) for entity in entities(tags)]
    num_right = len(set(found) & set(wanted))
    return 2 * num_right / max(1, len(found) + len(wanted))


def entities(tags: Sequence[str]) -> list[Entity]:
    """(type, first word, past-the-end word) of each entity; an I- without its B- opens one."""
    spans: list[Entity] = []
    kind, start = "", 0
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if prefix == "I" and name == kind:
            continue
        if kind:
            spans.append((kind, start, i))
        kind, start = (name, i) if prefix in ("B", "I") else ("", i)
    return spans
