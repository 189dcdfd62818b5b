"""Figures of merit."""

from __future__ import annotations

import pytest

from training.scores import entities, entity_f1


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["O", "B-a", "I-a", "O"], [("a", 1, 3)]),
        (["B-a", "B-a"], [("a", 0, 1), ("a", 1, 2)]),
        (["I-a", "I-b"], [("a", 0, 1), ("b", 1, 2)]),
        (["B-a", "I-b", "I-b"], [("a", 0, 1), ("b", 1, 3)]),
        (["O", "O"], []),
        ([], []),
    ],
)
def test_entities_are_whole_spans(tags: list[str], found: list[tuple[str, int, int]]) -> None:
    assert entities(tags) == found


def test_entity_f1_counts_exact_entities_only() -> None:
    gold = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
    assert entity_f1(gold, gold) == 1.0
    assert entity_f1([["B-a", "O", "O", "B-b"], ["O", "O"]], gold) == pytest.approx(2 * 1 / (2 + 3))
    assert entity_f1([["O"] * 4, ["O"] * 2], gold) == 0.0
    assert entity_f1([["B-b", "I-b", "O", "B-a"], ["O", "B-a"]], gold) == pytest.approx(1 / 3)
    assert entity_f1([gold[1], gold[0]], gold) == 0.0  # an entity belongs to its own text
    assert entity_f1([], []) == 0.0
