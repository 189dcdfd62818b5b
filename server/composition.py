"""Compositions of adapters: the tree a request asks for, in AdapterHub's words, and what the engine makes of it.

    Stack(de, ner)   Fuse(a, b)   Average(a, b; 0.3, 0.7)   Split(a, b; 3, 5)   Parallel(a, b, c)

The semantics are those of AdapterHub's library (Poth et al. 2023, arXiv:2311.11077).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from server.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Leaf:
    """One adapter: its name, once resolved its index among the parts of a route, in a batch its slot."""

    adapter: str | int


@dataclass(frozen=True, slots=True)
class Stack:
    """One after the other."""

    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Fuse:
    """AdapterFusion: attention over what the members give. `fusion` refers to the fusion's weights as leaves do."""

    children: tuple[Node, ...]
    fusion: str | int


@dataclass(frozen=True, slots=True)
class Average:
    """(1 / n) of the weighted sum over the n children, as the library computes it."""

    children: tuple[Node, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Each child on its own stretch of the sequence; the lengths add up to the sequence."""

    children: tuple[Node, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Each child on its own copy of the input: one result per child."""

    children: tuple[Node, ...]


Node = Leaf | Stack | Fuse | Average | Split | Parallel
Change = Callable[[str | int], str | int]


def leaves(node: Node) -> Iterator[Leaf]:
    """From left to right."""
    if isinstance(node, Leaf):
        yield node
    else:
        for child in node.children:
            yield from leaves(child)


def first_leaf(node: Node) -> Leaf:
    return next(leaves(node))


def last_leaf(node: Node) -> Leaf:
    return list(leaves(node))[-1]


def fuses(node: Node) -> list[Fuse]:
    """Every Fuse, those inside of others too."""
    if isinstance(node, Leaf):
        return []
    own = [node] if isinstance(node, Fuse) else []
    return own + [fuse for child in node.children for fuse in fuses(child)]


def replaced(node: Node, change: Change, change_fusion: Change | None = None) -> Node:
    """The same tree with every leaf and fusion reference changed; both alike if only one change is given."""
    if isinstance(node, Leaf):
        return Leaf(change(node.adapter))
    children = tuple(replaced(child, change, change_fusion) for child in node.children)
    if isinstance(node, Fuse):
        return Fuse(children, (change_fusion or change)(node.fusion))
    if isinstance(node, Average):
        return Average(children, node.weights)
    if isinstance(node, Split):
        return Split(children, node.lengths)
    return Stack(children) if isinstance(node, Stack) else Parallel(children)


def branches(node: Node) -> list[Node]:
    """The tree without Parallel: one tree per result."""
    if isinstance(node, Leaf):
        return [node]
    if isinstance(node, Parallel):
        return [branch for child in node.children for branch in branches(child)]
    if isinstance(node, Stack):
        return [
            Stack(children) for children in zip(*_aligned([branches(child) for child in node.children]), strict=True)
        ]
    return [node]


def _aligned(branched: Sequence[list[Node]]) -> list[list[Node]]:
    """The children of a Stack, each with as many branches: those of several Parallels go together one by one."""
    number = max(len(own) for own in branched)
    for own in branched:
        if len(own) not in (1, number):
            raise InvalidInput(
                f"a Stack holds a Parallel of {len(own)} and one of {number}; give them as many members as each other"
            )
    return [own * number if len(own) == 1 else own for own in branched]


def check_lengths(node: Node, num_tokens: int) -> None:
    """Raises InvalidInput unless the lengths of every Split add up to the tokens that reach it."""
    if isinstance(node, Leaf):
        return
    if isinstance(node, Split):
        if sum(node.lengths) != num_tokens:
            raise InvalidInput(
                f"the lengths of a Split add up to {sum(node.lengths)}, and the input has {num_tokens} tokens"
                " there; give lengths that add up to it, special tokens included"
            )
        for child, length in zip(node.children, node.lengths, strict=True):
            check_lengths(child, length)
    else:
        for child in node.children:
            check_lengths(child, num_tokens)


ALLOWED: dict[type, tuple[type, ...]] = {
    Stack: (Fuse, Split, Parallel, Average),
    Fuse: (Stack,),
    Split: (Split, Stack, Average),
    Parallel: (Stack, Average),
    Average: (Stack, Split),
}


def check_nesting(node: Node, depth: int = 0) -> None:
    """Raises InvalidInput for a nesting that AdapterHub's library refuses."""
    if isinstance(node, Leaf):
        return
    name = type(node).__name__
    allowed = ALLOWED[type(node)] if depth == 0 or not isinstance(node, Stack) else ()
    for child in node.children:
        if isinstance(child, Leaf):
            continue
        if not isinstance(child, allowed) or (depth > 0 and not isinstance(child, Stack)):
            names = ", ".join(kind.__name__ for kind in allowed) if depth == 0 else "adapters and stacks of adapters"
            inside = f"a {name}" if depth == 0 else f"a nested {name}"
            raise InvalidInput(
                f"{type(child).__name__} may not stand in {inside}; it may hold adapters and: {names or 'nothing else'}"
            )
        check_nesting(child, depth + 1)


def average_weights(weights: Sequence[float] | None, num_children: int, *, normalize: bool = True) -> tuple[float, ...]:
    """The factors of an Average's children: equal ones by default, adding up to 1 unless asked otherwise."""
    if weights is None:
        return (1.0 / num_children,) * num_children
    if len(weights) != num_children:
        raise InvalidInput(f"Average has {num_children} members and {len(weights)} weights; give one weight per member")
    total = sum(weights) if normalize else 1.0
    if not total or not math.isfinite(total):
        raise InvalidInput(f"the weights of an Average add up to {total:g}; give weights that add up to another number")
    return tuple(weight / total for weight in weights)


def fusion_name(children: Sequence[Node]) -> str:
    """What AdapterHub calls the fusion of these members."""
    return ",".join(str(last_leaf(child).adapter) for child in children)


def text_of(node: Node) -> str:
    """The expression that reads as this tree."""
    if isinstance(node, Leaf):
        return str(node.adapter)
    inside = ", ".join(text_of(child) for child in node.children)
    if isinstance(node, Average):
        inside += "; " + ", ".join(f"{weight!r}" for weight in node.weights)
        if not math.isclose(sum(node.weights), 1.0):
            inside += ", normalize=false"
    if isinstance(node, Split):
        inside += "; " + ", ".join(map(str, node.lengths))
    if isinstance(node, Fuse) and isinstance(node.fusion, str) and node.fusion != fusion_name(node.children):
        inside += f"; {node.fusion}"
    return f"{type(node).__name__}({inside})"
