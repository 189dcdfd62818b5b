from __future__ import annotations

import pytest

from server.composition import branches, check_lengths, text_of
from server.errors import InvalidInput
from server.expression import parse


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("a", "a"),
        (" Stack( de ,ner ) ", "Stack(de, ner)"),
        ("Average(a, b)", "Average(a, b; 0.5, 0.5)"),
        ("Average(a, b; 1, 3)", "Average(a, b; 0.25, 0.75)"),
        ("Average(a, b; 1, 3, normalize=false)", "Average(a, b; 1.0, 3.0, normalize=false)"),
        ("Split(a, b; 4)", "Split(a, b; 4, 4)"),
        ("Fuse(a, b)", "Fuse(a, b)"),
        ("Fuse(a, Stack(c, b); f-1)", "Fuse(a, Stack(c, b); f-1)"),
        ("Parallel(set/a, Stack(b, c))", "Parallel(set/a, Stack(b, c))"),
    ],
)
def test_expression_reads_as_its_tree(text: str, means: str) -> None:
    assert text_of(parse(text)) == means
    assert parse(means) == parse(text)


@pytest.mark.parametrize(
    "text", ["", "Stack()", "Stack(a", "a b", "Stack(a; 1)", "Split(a, b; 0)", "Average(a; x)", "Average(a, b; 1, -1)"]
)
def test_what_makes_no_sense_is_invalid(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


def test_several_parallels_of_a_stack_go_side_by_side() -> None:
    tree = parse("Stack(Parallel(a, b), c, Parallel(d, e))")
    assert [text_of(branch) for branch in branches(tree)] == ["Stack(a, c, d)", "Stack(b, c, e)"]


def test_lengths_of_inner_splits_add_up_to_their_stretch() -> None:
    check_lengths(parse("Split(Split(a, b; 1, 2), c; 3, 5)"), 8)
    with pytest.raises(InvalidInput, match="add up to 3, and the input has 4 tokens there"):
        check_lengths(parse("Split(Split(a, b; 1, 2), c; 4, 4)"), 8)
